"""What threads that load models do to each other, and that they no longer do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coresident as co
import numpy as np
import pytest
from conftest import spawn

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "peft", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402
import hazards  # noqa: E402
import tiny_models  # noqa: E402
from coresident.torch import installation as module  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tmp_path_factory.mktemp("models"))


@pytest.fixture
def installed() -> Iterator[ct.Installation]:
    installation = ct.install()
    yield installation
    installation.uninstall()


@pytest.fixture
def raw() -> Iterator[None]:
    """The libraries as they are, also if a test before this one has installed."""
    ct.install().uninstall()
    with hazards.mended():
        yield


@pytest.mark.parametrize("hazard", hazards.HAZARDS, ids=lambda hazard: hazard.__name__)
def test_the_hazard_is_there_without(hazard: Any, folder: Path, raw: None) -> None:
    if hazard(folder) is None:
        pytest.skip("upstream has mended it: nothing is to be prevented any more")


@pytest.mark.parametrize("hazard", hazards.HAZARDS, ids=lambda hazard: hazard.__name__)
def test_the_hazard_is_prevented(hazard: Any, folder: Path, installed: ct.Installation) -> None:
    with hazards.mended():
        assert hazard(folder) is None
    assert hazards.leftovers() == []


def test_installing_mends_what_a_load_before_has_left_of_linspace(raw: None) -> None:
    if hazards.numbers_on_meta_after_the_first_load(Path()) is None:
        pytest.skip("upstream has mended it: nothing is to be mended any more")
    ct.install()
    with torch.device("meta"):
        assert torch.linspace(0, 1, 3).is_meta


def test_installing_is_done_once_and_undone_completely(raw: None) -> None:
    import accelerate.big_modeling
    import transformers.modeling_utils

    def now() -> tuple[Any, ...]:
        return (
            torch.nn.Module.register_parameter,
            torch.set_default_dtype,
            torch.nn.init.normal_,
            torch.nn.modules.activation.xavier_uniform_,
            accelerate.big_modeling.init_on_device,
            transformers.modeling_utils.local_torch_dtype,
            vars(transformers.PreTrainedModel)["initialize_weights"],
        )

    before = now()
    first = ct.install()
    assert ct.install() is first
    assert not any(a is b for a, b in zip(before, now(), strict=True))
    assert set(first.versions) == {"torch", "accelerate", "diffusers", "transformers", "peft"}
    first.uninstall()
    first.uninstall()
    assert now() == before
    second = ct.install()
    first.uninstall()
    assert ct.install() is second, "one that is over undoes nothing"
    second.uninstall()
    assert now() == before


def test_a_release_that_is_not_known_is_told(
    raw: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(module.KNOWN, "diffusers", ((0, 1), (0, 2)))
    with caplog.at_level(logging.WARNING, "coresident.torch"):
        installation = ct.install()
    assert installation.unknown == ["diffusers"]
    [record] = caplog.records
    told = f"diffusers {installation.versions['diffusers']} is not known"
    assert record.getMessage().startswith(told)
    installation.uninstall()


def test_a_process_that_is_spoilt_already_is_refused_and_left_as_it_is(raw: None) -> None:
    with hazards.empty_weights():
        patched = torch.nn.Module.register_parameter
        with pytest.raises(co.CoresidentError, match="a model is being loaded, or two that were"):
            ct.install()
        assert torch.nn.Module.register_parameter is patched
    installation = ct.install()
    installation.uninstall()


def test_threads_that_install_at_once_get_the_same(raw: None) -> None:
    start = threading.Barrier(4)

    def install() -> ct.Installation:
        start.wait()
        return ct.install()

    found = [spawn(install) for _ in range(4)]
    first, *others = [thread.join() for thread in found]
    assert all(other is first for other in others)
    first.uninstall()


def test_no_move_waits_for_a_construction_and_constructions_overlap(
    folder: Path, installed: ct.Installation
) -> None:
    from diffusers import UNet2DModel

    both_build, moved = threading.Barrier(2), threading.Event()

    class Paused(UNet2DModel):
        @classmethod
        def from_config(cls, *args: Any, **kwargs: Any) -> Any:
            # In the middle of what changes other threads, without.
            both_build.wait(20)
            made = super().from_config(*args, **kwargs)
            assert moved.wait(20), "a move has waited for this construction"
            return made

    moving = UNet2DModel.from_pretrained(folder / "unet")
    builds = [spawn(lambda: Paused.from_pretrained(folder / "unet")) for _ in range(2)]
    moving.to(torch.float64).load_state_dict(moving.state_dict(), assign=True)
    moved.set()
    for build in builds:
        built = build.join()
        assert not any(parameter.is_meta for parameter in built.parameters())


def test_loads_that_replace_classes_are_put_in_order_and_the_log_says_why(
    folder: Path, installed: ct.Installation, caplog: pytest.LogCaptureFixture
) -> None:
    import transformers.monkey_patching as patching
    from conftest import until
    from transformers import CLIPTextModel
    from transformers.models.clip import modeling_clip

    original = modeling_clip.CLIPMLP
    inside, leave = threading.Event(), threading.Event()

    class Replaced(original):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if threading.current_thread().name == "first":
                inside.set()
                assert leave.wait(20)

    patching.register_patch_mapping({"CLIPMLP": Replaced})
    try:
        with caplog.at_level(logging.INFO, "coresident.torch"):
            first = spawn(lambda: CLIPTextModel.from_pretrained(folder / "clip"), name="first")
            assert inside.wait(20)
            second = spawn(lambda: CLIPTextModel.from_pretrained(folder / "clip"))
            until(lambda: caplog.records)
            leave.set()
            models = [first.join(), second.join()]
    finally:
        patching.unregister_patch_mapping(["CLIPMLP"])
    assert "classes are replaced (register_patch_mapping)" in caplog.records[0].getMessage()
    assert all(any(type(m) is Replaced for m in model.modules()) for model in models)
    assert modeling_clip.CLIPMLP is original

    class Broken(original):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any) -> None:
            raise ZeroDivisionError

    patching.register_patch_mapping({"CLIPMLP": Broken})
    try:
        with pytest.raises(ZeroDivisionError):
            CLIPTextModel.from_pretrained(folder / "clip")
    finally:
        patching.unregister_patch_mapping(["CLIPMLP"])
    assert modeling_clip.CLIPMLP is original, "also after an exception"


MAKERS: dict[str, Any] = {
    "zeros": lambda: torch.zeros(2),
    "full of fractions": lambda: torch.full((2,), 1.5),
    "full of numbers": lambda: torch.full((2,), 1),
    "arange": lambda: torch.arange(5),
    "arange of fractions": lambda: torch.arange(0, 1, 0.25),
    "tensor": lambda: torch.tensor([1.5, 2.0]),
    "tensor of numbers": lambda: torch.tensor([1, 2]),
    "as_tensor of a tensor": lambda: torch.as_tensor(torch.ones(2, dtype=torch.float64)),
    "told": lambda: torch.ones(2, dtype=torch.float64),
    "linspace": lambda: torch.linspace(0, 1, 7),
    "a quotient": lambda: torch.arange(1, 600) / 7,
    "a product": lambda: torch.arange(600) * 0.1,
    "a root": lambda: torch.sqrt(torch.arange(600)),
    "a power": lambda: 10000 ** -(torch.arange(0, 64, 2) / 64),
    "a mean": lambda: torch.arange(5).float().mean(),
    "where": lambda: torch.where(torch.tensor([True, False]), 1.5, 0.0),
    "masked": lambda: torch.tensor([True, False]) * 0.5,
    "of numpy": lambda: torch.tensor(np.full(3, 0.1, "float32")),
    "as numpy has it": lambda: torch.as_tensor(np.full(3, 0.1, "float32")),
    "a list of floats": lambda: torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
    "as an array": lambda: torch.asarray([0.1, 0.2]),
    "frequencies": lambda: torch.fft.fftfreq(8),
    "rotary": lambda: 1.0 / (10000.0 ** (torch.arange(0, 64, 2).float() / 64)),
    "parameter": lambda: torch.nn.Linear(2, 2).weight.detach().zero_(),
    "what it is": lambda: torch.zeros(1, dtype=torch.get_default_dtype()),
}


class TestDefaultDtype:
    """A thread's own default dtype does what the process's does."""

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float32"])
    @pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
    def test_what_is_made_is_what_it_would_be(
        self, make: Any, dtype: str, installed: ct.Installation
    ) -> None:
        from coresident.torch import _default_dtype

        wanted = getattr(torch, dtype)
        _default_dtype._set_process_default(wanted)
        try:
            expected = make()
        finally:
            _default_dtype._set_process_default(torch.float32)
        with _default_dtype.default_dtype(wanted):
            made = make()
        assert made.dtype == expected.dtype
        assert torch.equal(made, expected)

    def test_it_is_set_and_asked_as_ever_outside(self, installed: ct.Installation) -> None:
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.get_default_dtype() == torch.zeros(1).dtype == torch.float64
            assert spawn(torch.get_default_dtype).join() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        with pytest.raises(TypeError):
            torch.set_default_dtype(torch.int32)


def test_who_waits_for_a_package_that_replaces_itself_can_use_it(
    installed: ct.Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    package = tmp_path / "lazy_package"
    package.mkdir()
    (package / "part.py").write_text("class X: pass\n")
    (package / "__init__.py").write_text(
        "import sys, test_install\n"
        "from diffusers.utils.import_utils import _LazyModule\n"
        "test_install.in_package.set()\n"
        "test_install.wait_for_the_other()\n"
        "sys.modules[__name__] = _LazyModule(\n"
        "    __name__, globals()['__file__'], {'part': ['X']}, module_spec=__spec__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_install", sys.modules[__name__])

    def second() -> Any:
        in_package.wait(20)
        import lazy_package  # type: ignore[import-not-found]

        return lazy_package.X

    first = spawn(lambda: __import__("lazy_package"))
    waiter = spawn(second)
    second_thread.append(waiter.thread)
    first.join()
    assert waiter.join().__name__ == "X"
    sys.modules.pop("lazy_package", None)


in_package = threading.Event()
second_thread: list[threading.Thread] = []


def wait_for_the_other() -> None:
    """Returns when the other thread waits for the import."""
    import sys

    from conftest import until

    def waits() -> bool:
        if not second_thread:
            return False
        frame = sys._current_frames().get(second_thread[0].ident or 0)
        while frame is not None:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                return True
            frame = frame.f_back
        return False

    until(waits)
