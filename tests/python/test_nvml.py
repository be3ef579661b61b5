"""NVIDIA's cards through NVML: the real path, against a pretended library (see tests/pretend_nvml)."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import pretended, run_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libnvidia-ml.so.1 is Linux's")

ROOT = Path(__file__).parents[2]
SONAME = "libnvidia-ml.so.1"
WORKSTATION = (
    "NVIDIA GeForce RTX 3090:24GiB:8GiB-used,"
    "NVIDIA GeForce RTX 3090:24GiB,"
    "NVIDIA RTX A6000:48GiB:47GiB-used"
)
LABELS = ["RTX 3090 #1 (cuda:0)", "RTX 3090 #2 (cuda:1)", "RTX A6000 (cuda:2)"]
GIB = 1 << 30

PRELUDE = """
import json, os
import coresident as co

def loaded(name):
    with open("/proc/self/maps") as maps:
        return any(name in line for line in maps)
"""

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the pretended library, under the name that drivers give theirs."""
    return pretended("pretend_nvml", SONAME, tmp_path_factory.mktemp("driver"))


def ask_at(folder: Path, source: str, cards: str, visible: str | None) -> Any:
    """What the source assigns to `told`, in a fresh interpreter that finds NVML in this folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    folders = [str(folder), *filter(None, [env.get("LD_LIBRARY_PATH")])]
    env |= {"LD_LIBRARY_PATH": os.pathsep.join(folders), "PRETEND_NVML": cards}
    if visible is not None:
        env["CUDA_VISIBLE_DEVICES"] = visible
    body = PRELUDE + textwrap.dedent(source)
    # Whatever was asked: the driver's own library would make a context, or break forked children.
    ending = '\nassert not loaded("libcuda")\nprint(json.dumps(told))\n'
    done = run_script(body + ending, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def ask(library: Path) -> Ask:
    def ask(source: str, cards: str = WORKSTATION, visible: str | None = None) -> Any:
        return ask_at(library, source, cards, visible)

    return ask


def test_every_card_is_listed_with_its_label_and_its_memory(ask: Ask) -> None:
    told = ask("""
        cards = co.devices("auto")
        told = [[card.label, card.memory, card.free_memory()] for card in cards]
        assert not any(card.unified for card in cards)
        assert [card.torch_name for card in cards] == ["cuda:0", "cuda:1", "cuda:2"]
        assert repr(cards[1]) == "Device('cuda:1', 'RTX 3090 #2', 24 GiB)"
        """)
    memory = [[24 * GIB, 16 * GIB], [24 * GIB, 24 * GIB], [48 * GIB, 1 * GIB]]
    assert told == [[label, *bytes_] for label, bytes_ in zip(LABELS, memory, strict=True)]


@pytest.mark.parametrize(
    ("visible", "labels"),
    [
        ("2,0", ["RTX A6000 (cuda:0)", "RTX 3090 (cuda:1)"]),
        ("0,1", ["RTX 3090 #1 (cuda:0)", "RTX 3090 #2 (cuda:1)"]),
        ("2", ["RTX A6000 (cuda:0)"]),
        ("GPU-00000002,1", ["RTX A6000 (cuda:0)", "RTX 3090 (cuda:1)"]),
        ("0,-1,1", ["RTX 3090 (cuda:0)"]),
        ("1,7,0", ["RTX 3090 (cuda:0)"]),
        ("", []),
        ("-1", []),
        ("0,0", []),
        ("GPU-0", []),
    ],
)
def test_cuda_visible_devices_filters_and_reorders(
    ask: Ask, visible: str, labels: list[str]
) -> None:
    told = ask(
        """
        cards = [card for card in co.devices("auto") if card.type == "cuda"]
        told = [card.label for card in cards]
        """,
        visible=visible,
    )
    assert told == labels


def test_a_card_that_was_moved_by_cuda_visible_devices_tells_its_own_memory(ask: Ask) -> None:
    told = ask(
        """
        told = [[card.memory, card.free_memory()] for card in co.devices("auto")]
        """,
        visible="2,0",
    )
    assert told == [[48 * GIB, 1 * GIB], [24 * GIB, 16 * GIB]]


def test_an_instance_of_a_card_that_is_not_there_leaves_no_device_behind(ask: Ask) -> None:
    told = ask('told = [str(device) for device in co.devices("auto")]', visible="MIG-0123")
    assert told == ["cpu"]


def test_a_card_that_is_not_there_is_refused_with_those_that_are(ask: Ask) -> None:
    told = ask("""
        try:
            co.devices(["cuda:1", "cuda:9"])
        except co.DeviceNotFoundError as error:
            told = [str(error), error.device, error.present]
        """)
    present = ["cuda:0", "cuda:1", "cuda:2", "cpu"]
    message = f"there is no cuda:9 here: this machine has {', '.join(present)}"
    assert told == [message, "cuda:9", present]


def test_free_memory_is_what_the_driver_says_now(ask: Ask) -> None:
    told = ask("""
        (card,) = co.devices("cuda:1")
        told = [card.free_memory()]
        os.environ["PRETEND_NVML"] = os.environ["PRETEND_NVML"].replace("24GiB,", "24GiB:20GiB-used,")
        told += [card.free_memory(), card.memory]
        """)
    assert told == [24 * GIB, 4 * GIB, 24 * GIB]


def test_a_borrow_with_min_free_goes_by_what_the_driver_says_is_free(ask: Ask) -> None:
    told = ask("""
        pool = co.DevicePool("auto")

        def borrowed(**wish):
            with pool.borrow(**wish) as spare:
                return spare and str(spare.device)

        told = [
            borrowed(),
            borrowed(min_free="16GiB"),
            borrowed(min_free="16.1GiB"),
            borrowed(min_free="16.1GiB", prefer=["cuda:2"]),
            borrowed(min_free="1GiB", prefer=["cuda:2"]),
            borrowed(min_free="40GiB"),
        ]
        os.environ["PRETEND_NVML"] = os.environ["PRETEND_NVML"].replace("47GiB-used", "2GiB-used")
        told.append(borrowed(min_free="40GiB"))
        """)
    assert told == ["cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:2", None, "cuda:2"]


def test_a_card_that_does_not_tell_its_memory_is_listed_and_never_has_enough_of_it(
    ask: Ask,
) -> None:
    told = ask(
        """
        (card,) = co.devices("auto")
        pool = co.DevicePool([card])
        told = [card.label, repr(card), card.memory, card.free_memory()]
        with pool.borrow(min_free=1) as none, pool.borrow() as some:
            told += [none, str(some.device)]
        """,
        cards="NVIDIA GB10:128GiB,nomemory:0",
    )
    assert told == ["GB10 (cuda:0)", "Device('cuda:0', 'GB10')", None, None, None, "cuda:0"]


@pytest.mark.parametrize("cards", ["", "fail:init", f"{WORKSTATION},fail:init", "no description"])
def test_without_a_driver_or_a_card_there_is_the_cpu(ask: Ask, cards: str) -> None:
    told = ask(
        """
        told = [str(device) for device in co.devices("auto")]
        try:
            co.devices("cuda:0")
        except co.DeviceNotFoundError as error:
            told.append(str(error))
        """,
        cards=cards,
    )
    assert told == ["cpu", "there is no cuda:0 here: this machine has cpu"]


def test_a_driver_that_cannot_count_its_cards_has_none(ask: Ask) -> None:
    cards = f"{WORKSTATION},fail:count"
    assert ask('told = [str(device) for device in co.devices("auto")]', cards=cards) == ["cpu"]


def test_a_file_that_is_no_library_is_no_driver(tmp_path: Path) -> None:
    (tmp_path / SONAME).write_text("not a library")
    (tmp_path / "libnvidia-ml.so").write_text("not a library")
    source = 'told = [str(device) for device in co.devices("auto")]'
    assert ask_at(tmp_path, source, WORKSTATION, None) == ["cpu"]


def test_a_lost_card_is_not_listed(ask: Ask) -> None:
    told = ask(
        """
        told = sorted(device.label.split(" (")[0] for device in co.devices("auto"))
        """,
        cards=f"{WORKSTATION},lost:2",
    )
    assert not any("A6000" in model for model in told)


REASON = "src/device/nvml.rs drops lost cards before it counts, and looks all others up by UUID"


@pytest.mark.parametrize(("lost", "left"), [(0, [1, 2]), (1, [0, 2]), (2, [0, 1])])
def test_a_lost_card_hides_no_other_and_moves_no_number(
    ask: Ask, lost: int, left: list[int]
) -> None:
    told = ask(
        'told = [[str(card), card.memory] for card in co.devices("auto")]',
        cards=f"{WORKSTATION},lost:{lost}",
    )
    memory = [24 * GIB, 24 * GIB, 48 * GIB]
    assert told == [[f"cuda:{index}", memory[index]] for index in left]


def test_cuda_visible_devices_counts_lost_cards(ask: Ask) -> None:
    told = ask(
        'told = [[str(card), card.model] for card in co.devices("auto")]',
        cards=f"{WORKSTATION},lost:1",
        visible="2,1,0",
    )
    assert told == [["cuda:0", "RTX A6000"], ["cuda:2", "RTX 3090"]]


def test_a_card_that_gets_lost_does_not_blind_the_others(ask: Ask) -> None:
    told = ask("""
        cards = co.devices("auto")
        os.environ["PRETEND_NVML"] += ",lost:1"
        told = [card.free_memory() for card in cards]
        told.append([str(card) for card in co.devices("auto")])
        """)
    assert told == [16 * GIB, None, 1 * GIB, ["cuda:0", "cuda:2"]]


def test_a_card_that_gets_lost_has_no_free_memory_that_is_known(ask: Ask) -> None:
    told = ask("""
        pool = co.DevicePool("cuda:1")
        (card,) = pool.devices
        os.environ["PRETEND_NVML"] += ",lost:1"
        with pool.borrow(min_free=1) as none:
            told = [card.free_memory(), card.memory, none]
        """)
    assert told == [None, 24 * GIB, None]


def test_nvml_is_loaded_when_cards_are_asked_for_and_not_before(ask: Ask) -> None:
    told = ask(f"""
        told = [loaded({SONAME!r})]
        co.devices(["cpu", "virtual:1"]), co.virtual_devices(2), co.DevicePool(["cpu"])
        told.append(loaded({SONAME!r}))
        co.devices("auto")
        told.append(loaded({SONAME!r}))
        """)
    assert told == [False, False, True]


def test_a_child_forked_after_asking_can_ask_too(ask: Ask) -> None:
    told = ask("""
        before = [str(card) for card in co.devices("auto")]
        child = os.fork()
        if child == 0:
            cards = co.devices("auto")
            same = [str(card) for card in cards] == before
            os._exit(0 if same and cards[0].free_memory() == 16 << 30 else 1)
        told = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        """)
    assert told == 0


def test_eight_threads_that_ask_first_all_see_every_card(ask: Ask) -> None:
    told = ask("""
        from concurrent.futures import ThreadPoolExecutor
        from threading import Barrier

        barrier = Barrier(8)

        def look(_):
            barrier.wait()
            return [card.label for card in co.devices("auto")]

        with ThreadPoolExecutor(8) as threads:
            told = list(threads.map(look, range(8)))
        """)
    assert told == [LABELS] * 8
