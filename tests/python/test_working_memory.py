"""Peaks of working memory: remembered, shared by processes, and what they depend on."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import coresident as co
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
diffusers = pytest.importorskip("diffusers", reason="comes with the test extra")

import tiny_models  # noqa: E402
from coresident.torch import working_memory  # noqa: E402
from coresident.torch.working_memory import (  # noqa: E402
    WorkingMemory,
    signature,
)

KIB = 1024


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_models.attentive_unet()


def kib(count: int = 1) -> Any:
    """A tensor of so many KiB."""
    return torch.empty(count * KIB, dtype=torch.uint8)


# Remembering


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "working memory.json"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_the_largest_peak_of_each_call_is_known() -> None:
    memory = WorkingMemory()
    assert memory.peak("sd", "unet", "1x4") is None
    for nbytes in (2, 5, 3):
        memory.learn("sd", "unet", "1x4", nbytes)
    memory.learn("sd", "vae", "1x4", 1)
    memory.learn("sd", "unet", "2x4", 0)
    assert memory.peak("sd", "unet", "1x4") == 5
    assert memory.peak("sd", "vae", "1x4") == 1
    assert memory.peak("sd", "unet", "2x4") == 0
    assert memory.peak("xl", "unet", "1x4") is None


def test_what_was_learned_is_there_the_next_time_in_a_file_that_people_can_read(
    path: Path,
) -> None:
    memory = WorkingMemory(path)
    memory.learn("sd/vae", "decoder", "float16 | 1x4x64x64 float16", 7)
    memory.learn("sd/unet", "unet", "float16", 5)
    assert WorkingMemory(str(path)).peak("sd/unet", "unet", "float16") == 5
    content = json.loads(path.read_text())
    assert list(content["peaks"]) == ["sd/unet", "sd/vae"]
    assert content["peaks"]["sd/vae"]["decoder"]["float16 | 1x4x64x64 float16"]["bytes"] == 7
    assert len(path.read_text().splitlines()) > 10
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.name + ".lock"]


def test_only_what_is_new_or_larger_is_saved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (saved.append(paths), replace(*paths)))
    memory = WorkingMemory(path)
    for nbytes in (4, 4, 3, 5):
        memory.learn("sd", "unet", "a", nbytes)
    assert len(saved) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"format": 1, "peaks": {"sd": {"unet": {"a": {"bytes": -1, "used": ""}}}}}',
        b'{"format": 1, "peaks": {"sd": {"unet": {"a": {"bytes": "many", "used": ""}}}}}',
        b'{"format": 1, "peaks": [1]}',
        b'{"format": 2, "peaks": {}}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_damaged_or_of_another_version_is_replaced_and_the_log_says_so(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    memory = WorkingMemory(path)
    [said] = warnings_of(caplog)
    assert f"{path} is not used, and will be replaced" in said
    memory.learn("sd", "unet", "a", 3)
    assert WorkingMemory(path).peak("sd", "unet", "a") == 3


def test_where_nothing_can_be_written_the_log_says_so_once_and_learning_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Not a folder without permissions: root may do everything.
    path.parent.write_text("a file")
    memory = WorkingMemory(path)
    for nbytes in (1, 2):
        memory.learn("sd", "unet", "a", nbytes)
    assert memory.peak("sd", "unet", "a") == 2
    [said] = warnings_of(caplog)
    assert "cannot save the working memory of models, and goes on without" in said


def test_a_disk_that_is_full_leaves_the_file_whole_and_is_tried_again(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = WorkingMemory(path)
    memory.learn("sd", "unet", "a", 1)

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        memory.learn("sd", "unet", "b", 2)
        memory.learn("sd", "unet", "c", 3)
    assert len(warnings_of(caplog)) == 1
    assert [p for p in path.parent.iterdir() if p.suffix not in (".json", ".lock")] == []
    assert WorkingMemory(path).peak("sd", "unet", "b") is None
    memory.save()
    assert WorkingMemory(path).peak("sd", "unet", "b") == 2


def test_those_that_share_a_file_learn_from_each_other_and_the_larger_counts(path: Path) -> None:
    one, other = WorkingMemory(path), WorkingMemory(path)
    one.learn("sd", "unet", "a", 10)
    one.learn("sd", "unet", "b", 1)
    other.learn("sd", "unet", "a", 5)
    assert other.peak("sd", "unet", "a") == 10
    other.learn("sd", "unet", "b", 2)
    assert (one.peak("sd", "unet", "b"), WorkingMemory(path).peak("sd", "unet", "b")) == (1, 2)
    one.save()
    assert one.peak("sd", "unet", "b") == 2


def test_processes_and_threads_that_save_at_once_lose_nothing(path: Path) -> None:
    script = """
        import sys, threading
        from coresident.torch.working_memory import WorkingMemory

        memory = WorkingMemory(sys.argv[1])
        process = int(sys.argv[2])
        print("ready", flush=True)
        sys.stdin.readline()

        def learn(thread):
            for step in range(5):
                memory.learn("sd", "unet", f"{process}.{thread}.{step}", step)
                memory.learn("sd", "unet", "shared", 100 * process + 10 * thread + step)

        threads = [threading.Thread(target=learn, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(number)], **pipes) for number in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=30)
        assert process.returncode == 0
    memory = WorkingMemory(path)
    assert memory.peak("sd", "unet", "shared") == 134
    for number in range(40):
        process, thread, step = number // 20, number // 5 % 4, number % 5
        assert memory.peak("sd", "unet", f"{process}.{thread}.{step}") == step


def test_a_process_that_stops_while_it_saves_does_not_stop_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="files are not locked here")
    monkeypatch.setattr(working_memory, "_TRIES", 3)
    path.parent.mkdir()
    with path.with_name(path.name + ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        WorkingMemory(path).learn("sd", "unet", "a", 1)
    assert WorkingMemory(path).peak("sd", "unet", "a") == 1


def test_the_least_recently_used_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_memory, "_MAX_ENTRIES", 3)
    memory = WorkingMemory(path)
    for name in "abc":
        memory.learn("sd", "unet", name, 1)
    memory.peak("sd", "unet", "a")
    memory.learn("sd", "unet", "d", 1)
    found = [memory.peak("sd", "unet", name) for name in "abcd"]
    assert found == [1, None, 1, 1]
    assert len(json.loads(path.read_text())["peaks"]["sd"]["unet"]) == 3


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(co.InvalidTypeError, match="path is a str or a Path, not int"):
        WorkingMemory(3)  # type: ignore[arg-type]
    for nbytes in (-1, 1.5, "1GiB"):
        with pytest.raises(co.InvalidValueError, match="nbytes is a number of bytes, not"):
            WorkingMemory().learn("sd", "unet", "a", nbytes)  # type: ignore[arg-type]


# What a peak depends on


def test_calls_that_are_alike_have_the_same_signature(unet: Any) -> None:
    def call(step: Any, scale: float) -> str:
        text = {"encoder_hidden_states": torch.empty(2, 5, 8), "scale": scale, "name": str(step)}
        return signature(unet, (torch.empty(2, 4, 8, 8), step), text)

    assert call(1, 0.5) == call(999, 7.5)
    assert call(1, 0.5) == ("float32 | 2x4x8x8 float32, encoder_hidden_states=2x5x8 float32")
    assert signature(unet, (), {"a": kib(), "b": kib(2)}) == signature(
        unet, (), {"b": kib(2), "a": kib()}
    )


def test_what_working_memory_depends_on_is_in_the_signature() -> None:
    vae = tiny_models.autoencoder(8, 8)
    image = torch.empty(1, 3, 8, 8)
    output = diffusers.models.autoencoders.vae.DecoderOutput(sample=image)
    texts = [
        signature(vae, (), {}),
        signature(vae, (image,), {}),
        signature(vae, (image.half(),), {}),
        signature(vae, (image.mT,), {"mask": image}),
        signature(vae, (image, torch.tensor(3)), {}),
        signature(vae, ([image, (image, {"of": image})],), {}),
        signature(vae, (output,), {}),
        signature(tiny_models.autoencoder(8, 8).half(), (image,), {}),
        signature(torch.nn.Identity(), (image,), {}),
    ]
    vae.enable_tiling()
    texts.append(signature(vae, (image,), {}))
    vae.enable_slicing()
    texts.append(signature(vae, (image,), {}))
    vae.set_attn_processor(diffusers.models.attention_processor.SlicedAttnProcessor(1))
    texts.append(signature(vae, (image,), {}))
    assert len(set(texts)) == len(texts)
    assert texts[5] == "float32 | 1x3x8x8 float32, 1x3x8x8 float32, of=1x3x8x8 float32"
    assert texts[6] == "float32 | sample=1x3x8x8 float32"
    assert texts[-1] == "float32 | 1x3x8x8 float32 | tiling, slicing, attention slicing"
