"""What jobs of one pipeline must not share: shown to break, and not to with copies of their own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from conftest import spawn

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402

DIGITS = Path(co.__file__).parent / "digits"


@pytest.fixture(scope="module")
def pipe() -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(DIGITS, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, seed: int, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        "seven",
        num_inference_steps=4,
        generator=generator,
        output_type="np",
        guidance_scale=1.0,
        **options,
    ).images


def draw_in_step(pipes: list[Any]) -> list[Any]:
    """Draws with each in a thread of its own, all of them a step at a time; errors as they are."""
    together = threading.Barrier(len(pipes))

    def run(pipe: Any, seed: int) -> Any:
        def after_step(_pipe: Any, _step: int, _time: Any, kept: Any) -> Any:
            together.wait(20)
            return kept

        try:
            return draw(pipe, seed, callback_on_step_end=after_step)
        except Exception as error:
            together.abort()
            return error

    jobs = [spawn(lambda p=p, s=s: run(p, s)) for s, p in enumerate(pipes)]
    return [job.join(60) for job in jobs]


def is_image(found: Any, expected: Any) -> bool:
    return not isinstance(found, Exception) and bool((found == expected).all())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_jobs_that_share_a_scheduler_spoil_each_other_and_with_their_own_they_do_not(
    pipe: Any,
) -> None:
    from diffusers import EulerDiscreteScheduler

    # One that counts its steps, as most do.
    counting = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe = ct.per_job(pipe, scheduler=counting)
    expected = [draw(ct.per_job(pipe), seed) for seed in (0, 1)]
    shared = draw_in_step([pipe, pipe])
    if all(is_image(found, image) for found, image in zip(shared, expected, strict=True)):
        pytest.skip("upstream has mended it: schedulers may be shared")
    own = draw_in_step([ct.per_job(pipe), ct.per_job(pipe)])
    assert all(is_image(found, image) for found, image in zip(own, expected, strict=True))


def test_jobs_that_share_a_tokenizer_get_lengths_of_others_and_with_their_own_they_do_not(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up, encoded = threading.Event(), threading.Event()
    kind = type(pipe.tokenizer)
    original = kind.set_truncation_and_padding

    def paused(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if threading.current_thread().name == "long":
            set_up.set()
            assert encoded.wait(20)

    monkeypatch.setattr(kind, "set_truncation_and_padding", paused)

    def lengths(long_one: Any, short_one: Any) -> int:
        set_up.clear()
        encoded.clear()
        options = {"padding": "max_length", "truncation": True}
        job = spawn(lambda: long_one("seven", max_length=12, **options), name="long")
        assert set_up.wait(20)
        short_one("seven", max_length=5, **options)
        encoded.set()
        return len(job.join()["input_ids"])

    if lengths(pipe.tokenizer, pipe.tokenizer) == 12:
        pytest.skip("upstream has mended it: tokenizers may be shared")
    one, other = ct.per_job(pipe), ct.per_job(pipe)
    assert lengths(one.tokenizer, other.tokenizer) == 12


def test_a_pipeline_for_one_job_has_the_modules_and_copies_of_the_rest(pipe: Any) -> None:
    made = ct.per_job(pipe)
    assert type(made) is type(pipe)
    for name in ("unet", "vae", "text_encoder"):
        assert getattr(made, name) is getattr(pipe, name)
    for name in ("scheduler", "tokenizer"):
        assert getattr(made, name) is not getattr(pipe, name)
        assert type(getattr(made, name)) is type(getattr(pipe, name))
    assert made.scheduler.config == pipe.scheduler.config
    made.set_progress_bar_config(disable=False)
    assert pipe._progress_bar_config == {"disable": True}
    assert (draw(made, 3) == draw(ct.per_job(pipe), 3)).all()


def test_what_a_scheduler_was_set_to_is_kept(pipe: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    other = ct.per_job(pipe, scheduler=FlowMatchEulerDiscreteScheduler())
    other.scheduler.set_shift(5.0)
    made = ct.per_job(other)
    assert (made.scheduler.shift, made.scheduler is other.scheduler) == (5.0, False)
    assert made.config["scheduler"] == ("diffusers", "FlowMatchEulerDiscreteScheduler")


def test_pipelines_within_a_pipeline_are_the_jobs_own_too(pipe: Any) -> None:
    outer = ct.per_job(pipe)
    outer.inner = pipe
    unet = torch.nn.Identity()
    made = ct.per_job(outer, unet=unet)
    assert made.inner.unet is made.unet is unet
    assert made.inner.scheduler is not pipe.scheduler
    assert pipe.unet is not unet


def test_components_can_be_replaced_by_name(pipe: Any) -> None:
    other = torch.nn.Identity()
    assert ct.per_job(pipe, unet=other).unet is other
    with pytest.raises(co.InvalidTypeError, match="StableDiffusionPipeline has no 'transformer'"):
        ct.per_job(pipe, transformer=other)
    with pytest.raises(co.InvalidTypeError, match="pipe is a pipeline of diffusers, not str"):
        ct.per_job("pipe")
