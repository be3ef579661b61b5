"""The pipeline that the demo draws with: does it draw what it is asked for?"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import coresident as co
import numpy
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
diffusers = pytest.importorskip("diffusers", reason="diffusers is an extra, not installed here")
pytest.importorskip("sklearn", reason="comes with the test extra, and not installed here")

from classifier import recognise, train_classifier  # noqa: E402
from dataset import WORDS, digits  # noqa: E402
from model import draw  # noqa: E402

pytestmark = pytest.mark.timeout(300)  # hundreds of images
MODEL = Path(co.__file__).parent / "digits"
GUIDANCE = 3.0
SEEDS = range(20)


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def drawn(pipe: Any) -> dict[str, list[Any]]:
    """Every digit, twenty times."""
    return {word: draw(pipe, f"a handwritten {word}", SEEDS, GUIDANCE) for word in WORDS}


def score(drawn: dict[str, list[Any]]) -> float:
    """The share of images in which a classifier of real digits sees what was asked for."""
    classifier = train_classifier()
    right = [
        found == WORDS.index(word)
        for word, images in drawn.items()
        for found in recognise(classifier, images)
    ]
    return sum(right) / len(right)


def test_the_classes_are_those_of_the_released_libraries(pipe: Any) -> None:
    parts = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
    modules = {part: inspect.getmodule(type(getattr(pipe, part))).__name__ for part in parts}
    assert {name.partition(".")[0] for name in modules.values()} == {"diffusers", "transformers"}
    size = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    assert size <= 6_000_000


def test_the_classifier_knows_digits_that_it_has_not_seen() -> None:
    from classifier import features
    from sklearn.model_selection import cross_val_score

    images, labels = digits()
    scores = cross_val_score(train_classifier(), features(images), labels.numpy(), cv=4)
    assert scores.mean() > 0.94


def test_real_digits_are_seen_in_what_it_draws(drawn: dict[str, list[Any]]) -> None:
    assert score(drawn) >= 0.85


def test_guidance_is_what_makes_it_draw_what_it_is_asked_for(
    pipe: Any, drawn: dict[str, list[Any]]
) -> None:
    unguided = {word: draw(pipe, f"a handwritten {word}", SEEDS, 1.0) for word in WORDS}
    assert score(unguided) < score(drawn)


def test_every_seed_draws_another_digit_and_none_is_copied(drawn: dict[str, list[Any]]) -> None:
    images, _ = digits()
    known = ((images[:, 0] + 1) / 2).flatten(1)
    for word in ("seven", "two"):
        assert len({hashlib.sha256(image.tobytes()).digest() for image in drawn[word]}) == 20
        arrays = numpy.stack([numpy.asarray(image.convert("L")) for image in drawn[word]])
        own = torch.from_numpy(arrays).float().div(255).flatten(1)
        among = torch.cdist(own, own).fill_diagonal_(torch.inf).min()
        assert among > 1, "two seeds draw nearly the same"
        assert torch.cdist(own, known).min() > 1, "it draws a digit that it has been shown"


def test_a_figure_means_the_same_as_its_word(pipe: Any) -> None:
    images = {
        str(figure): draw(pipe, f"the digit {figure}", range(4), GUIDANCE) for figure in range(10)
    }
    classifier = train_classifier()
    right = [
        found == int(figure)
        for figure, drawn in images.items()
        for found in recognise(classifier, drawn)
    ]
    assert sum(right) >= 0.8 * len(right)


def test_the_same_seed_draws_the_same_bits(pipe: Any) -> None:
    once, again = (draw(pipe, "a handwritten five", [7], GUIDANCE)[0].tobytes() for _ in range(2))
    assert once == again
