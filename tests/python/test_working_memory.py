"""Working memory: counted while a thread computes, remembered, and estimated before."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from conftest import run_script, spawn

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
diffusers = pytest.importorskip("diffusers", reason="comes with the test extra")

from coresident.torch import working_memory  # noqa: E402
from coresident.torch.activations import Activations  # noqa: E402
from coresident.torch.working_memory import (  # noqa: E402
    WorkingMemory,
    estimate,
    signature,
    tiled,
)

KIB = 1024


def kib(count: int = 1) -> Any:
    """A tensor of so many KiB."""
    return torch.empty(count * KIB, dtype=torch.uint8)


class Device:
    """Says whether there is room, and remembers what it was told."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.told: list[int] = []

    def resize(self, nbytes: int) -> bool:
        self.told.append(nbytes)
        return nbytes <= self.room


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def autoencoder(*channels: int, layers: int = 1) -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    ).eval()


# Counting


def test_what_operations_make_counts_until_it_is_freed() -> None:
    with Activations() as counted:
        one = kib(2)
        other = one + 1
        assert counted.live == 4 * KIB
        del one
        assert counted.live == 2 * KIB
        del other
    assert (counted.live, counted.peak) == (0, 4 * KIB)


def test_views_and_what_is_done_in_place_add_nothing() -> None:
    with Activations() as counted:
        made = kib(4)
        views = [made[1:], made.view(2, -1).t(), made.detach(), *made.split(KIB)]
        made.add_(1).view(-1)[::2].mul_(3)
        torch.add(made, 1, out=made)
        assert counted.live == 4 * KIB
        del made
        # The views still have it.
        assert counted.live == 4 * KIB
        views.clear()
    assert counted.live == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_storages_that_were_there_before_do_not_count(mode: Callable[[], Any]) -> None:
    with mode():
        before = torch.ones(KIB)
        with Activations() as counted:
            # Some of these say that they make a tensor, and return what they were given.
            before.add_(1)
            kept = [
                before[1:],
                before.reshape(2, -1),
                before.contiguous(),
                before.to(torch.float32),
                torch.nn.functional.dropout(before, 0.5, training=False),
                *torch.broadcast_tensors(before, before),
                torch.mul(before, 2, out=before),
                torch.empty(0).set_(before.untyped_storage()),
            ]
            assert counted.live == 0
        assert kept


def test_each_tensor_of_an_operation_that_makes_several_counts() -> None:
    with Activations() as counted:
        values, places = torch.arange(KIB, dtype=torch.float32).topk(KIB // 2)
        assert counted.live == values.nbytes + places.nbytes
        halves = torch._foreach_add([values, values], 1)
        assert counted.live == 3 * values.nbytes + places.nbytes
        del halves
    assert counted.peak >= 3 * values.nbytes + places.nbytes


def test_only_memory_of_the_cpu_counts() -> None:
    with Activations() as counted:
        kept = [torch.empty(KIB, device="meta") * 2, torch.eye(2).to_sparse()]
        assert counted.live < KIB
    assert kept


def test_only_the_thread_that_has_entered_counts() -> None:
    with Activations() as counted:
        kept = spawn(kib).join()
        assert counted.live == 0
    kept = [kept, kib()]
    assert counted.live == 0


def test_two_threads_cannot_enter_the_same() -> None:
    def enter() -> None:
        with counted:
            pass

    with Activations() as counted:
        with pytest.raises(RuntimeError, match="another thread counts with these Activations"):
            spawn(enter).join()
        made = kib()
    spawn(enter).join()
    assert counted.live == made.nbytes


def test_threads_that_count_leave_nothing_behind_in_torch() -> None:
    # torch notes for the process that a thread is in a mode, and whoever leaves first says no more.
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode

    entered, left = threading.Event(), threading.Event()

    def leave_last() -> None:
        with Activations():
            entered.set()
            assert left.wait(20)

    with Activations():
        other = spawn(leave_last)
        assert entered.wait(20)
    left.set()
    other.join()
    assert not is_in_torch_dispatch_mode()


def test_a_tensor_that_outlives_the_block_is_taken_off_when_another_thread_frees_it() -> None:
    device = Device()
    with Activations(device.resize) as counted:
        box = [kib(), kib(2)]
    assert counted.live == 3 * KIB
    spawn(box.pop).join()
    assert counted.live == KIB
    # Whose bytes they are is known when nobody has the counter any more.
    del counted
    gc.collect()
    box.clear()
    assert device.told == [KIB, 3 * KIB, KIB, 0]


def test_nested_blocks_count_what_is_made_within_them() -> None:
    with Activations() as outer:
        first = kib()
        with Activations() as inner:
            second = kib(2)
        third = kib(4)
        assert (outer.live, inner.live) == (7 * KIB, 2 * KIB)
        with outer:
            fourth = kib(8)
        assert outer.live == 15 * KIB
    del first, second, third, fourth
    assert (outer.live, inner.live) == (0, 0)


def test_an_operation_that_fails_adds_nothing_and_the_block_ends() -> None:
    with pytest.raises(RuntimeError, match="size"):
        with Activations() as counted:
            kib(1) + kib(2)
    kept = kib()
    assert (counted.live, counted.peak, len(kept)) == (0, 3 * KIB, KIB)


def test_what_autograd_keeps_counts_until_it_is_let_go() -> None:
    weight = torch.ones(KIB, requires_grad=True)
    with Activations() as counted:
        loss = weight.exp().sum()
        assert counted.live > weight.nbytes
        loss.backward()
        assert weight.grad.nbytes <= counted.live < weight.nbytes + KIB
    del loss
    weight.grad = None
    assert counted.live == 0


def test_nothing_is_kept_alive() -> None:
    with Activations() as counted:
        made = kib()
        freed = weakref.ref(made)
        del made
        assert freed() is None
    freed = weakref.ref(counted)
    del counted
    gc.collect()
    assert freed() is None


def test_what_is_alive_when_the_interpreter_ends_is_no_trouble() -> None:
    script = """
        import torch
        from coresident.torch.activations import Activations

        with Activations(lambda nbytes: True) as counted:
            torch.kept = [torch.ones(9) for _ in range(9)]
        kept = torch.kept[1:]
        print(counted.live)
    """
    ended = run_script(script)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "324\n", "")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_same_bits_and_the_peak_is_that_of_every_mode(
    unet: Any, mode: Callable[[], Any], dtype: Any
) -> None:
    vae = autoencoder(8, 16)
    noise, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)

    def compute() -> list[Any]:
        # One that converts what it is given, and one that is converted.
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            step = unet(noise, 7, text).sample
        latents = vae.to(dtype).encode(torch.ones(1, 3, 16, 16, dtype=dtype)).latent_dist.mean
        return [step, latents, vae.decode(latents).sample]

    with torch.no_grad(), Activations() as usual:
        expected = compute()
    with mode():
        plain = compute()
        with Activations() as counted:
            found = compute()
    for one, other, third in zip(found, plain, expected, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    if dtype == torch.float32:
        assert counted.peak == usual.peak
    assert counted.live >= sum(tensor.nbytes for tensor in (found[0], found[2]))
    del found
    # For the loop variable.
    del one, other, third
    assert counted.live == 0


def test_what_an_operation_is_made_of_counts_in_inference_mode_too() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads = torch.randn(1, 1, 64, 8)

    def peak(mode: Callable[[], Any]) -> int:
        # With a matrix of scores, which is far larger than what comes of it.
        with mode(), sdpa_kernel(SDPBackend.MATH), Activations() as counted:
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return counted.peak

    assert peak(torch.inference_mode) == peak(torch.no_grad) > 64 * 64 * 4


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_converts_what_it_converts_without_counting(enabled: bool) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads = torch.randn(1, 2, 16, 8)
    square, sequence = torch.randn(8, 8), torch.randn(1, 3, 8)
    recurrent = torch.nn.GRU(8, 8)
    # The parts of some are converted, and some themselves.
    for compute in (
        lambda: torch.einsum("ij,kj->ik", square, square),
        lambda: torch.linalg.multi_dot([square, square, square]),
        lambda: torch.nn.functional.linear(square, square),
        lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads),
        lambda: recurrent(sequence)[0],
    ):
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=enabled)
        with torch.inference_mode(), autocast, sdpa_kernel(SDPBackend.MATH):
            expected = compute()
            with Activations():
                found = compute()
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_what_is_compiled_stays_so_and_gives_the_same() -> None:
    ran = []

    def backend(graph: Any, _inputs: Any) -> Any:
        return lambda *args: (ran.append(True), graph(*args))[1]

    compiled = torch.compile(lambda x: x.sin() + 1, backend=backend, fullgraph=True)
    with Activations():
        assert torch.equal(compiled(torch.ones(3)), torch.ones(3).sin() + 1)
    assert ran == [True]


# A device whose memory is bounded


def test_the_device_is_told_whenever_there_is_more_or_less() -> None:
    device = Device()
    with Activations(device.resize):
        made = kib()
        made = made + 1
        made.add_(1)
        del made
    assert device.told == [KIB, 2 * KIB, KIB, 0]


def test_an_operation_without_room_raises_as_on_a_gpu_and_leaves_the_total_as_it_was() -> None:
    device = Device(room=3 * KIB)
    with Activations() as outer, Activations(device.resize) as counted:
        kept = kib(2)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            kept.repeat(2)
        # Also while somebody has the error, and with it the frames.
        assert outer.live == counted.live == 2 * KIB
        assert counted.peak == 2 * KIB
        assert device.told == [2 * KIB, 6 * KIB, 2 * KIB]
        assert str(caught.value) == (
            "out of memory: aten.repeat.default asked for 4096 bytes, where 2048 bytes of "
            "activations are live: the virtual device is full"
        )
        more = kib()
        assert (counted.live, device.told[-1], more.nbytes) == (3 * KIB, 3 * KIB, KIB)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_model_that_ran_out_of_memory_runs_when_there_is_room(
    unet: Any, mode: Callable[[], Any]
) -> None:
    noise, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8)
    with mode():
        expected = unet(noise, 7, text).sample
        with Activations() as counted:
            unet(noise, 7, text)
        device = Device(room=counted.peak - 1)
        with Activations(device.resize) as bounded:
            with pytest.raises(torch.OutOfMemoryError):
                unet(noise, 7, text)
            assert bounded.live == device.told[-1] == 0
            device.room += 1
            assert torch.equal(unet(noise, 7, text).sample, expected)
    assert (bounded.peak, device.told[-1]) == (counted.peak, 0)


def test_an_error_of_resize_is_the_operations_and_nothing_counts() -> None:
    def resize(nbytes: int) -> bool:
        if nbytes:
            raise ZeroDivisionError
        return True

    with Activations(resize) as counted:
        with pytest.raises(ZeroDivisionError):
            kib()
    assert counted.live == 0


def test_what_is_freed_while_the_device_is_told_is_told_after_it() -> None:
    told: list[int] = []
    boxes: list[list[Any]] = [[], []]
    within = False

    def resize(nbytes: int) -> bool:
        nonlocal within
        assert not within
        within = True
        told.append(nbytes)
        for box in boxes:
            box.clear()
        within = False
        return True

    # Of this one, and of another one that is entered too.
    with Activations(resize) as outer:
        boxes[0].append(kib())
        with Activations(resize) as inner:
            boxes[1].append(kib(2))
            kib(4)
    assert (outer.live, inner.live) == (0, 0)
    assert told[-1] == 0


def test_the_last_that_is_told_is_right_though_an_older_total_comes_late() -> None:
    told: list[int] = []
    late, go_on = threading.Event(), threading.Event()

    def resize(nbytes: int) -> bool:
        if threading.current_thread().name == "slow" and not late.is_set():
            late.set()
            assert go_on.wait(20)
        told.append(nbytes)
        return True

    with Activations(resize) as counted:
        box = [kib(1)]
        freeing = spawn(box.clear, name="slow")
        assert late.wait(20)
        # Nobody waits for the slow one.
        made = kib(2)
        assert told == [KIB, 2 * KIB]
        go_on.set()
        freeing.join()
        assert told == [KIB, 2 * KIB, 0, 2 * KIB]
        assert counted.live == made.nbytes


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns, and garbage is collected, as often as can be."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5, 2, 2)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("hasty")
def test_no_byte_is_lost_when_threads_and_garbage_collection_free_what_one_makes() -> None:
    device = Device()
    handed: list[Any] = []
    done = threading.Event()

    def free() -> None:
        while not done.is_set() or handed:
            with contextlib.suppress(IndexError):
                handed.pop()

    threads = [spawn(free) for _ in range(3)]
    most = 0
    with Activations(device.resize) as counted:
        for _ in range(400):
            circle: list[Any] = [kib(), kib()]
            circle.append(circle)
            handed.append(kib())
            most = max(most, counted.live)
    done.set()
    for thread in threads:
        thread.join()
    del circle
    gc.collect()
    assert (counted.live, device.told[-1]) == (0, 0)
    assert min(device.told) == 0
    assert most <= counted.peak <= 1200 * KIB


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
    vae = autoencoder(8, 8)
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
        signature(autoencoder(8, 8).half(), (image,), {}),
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


# Estimating


def wan() -> Any:
    return diffusers.AutoencoderKLWan(base_dim=16, num_res_blocks=1)


def wan_of_patches() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def cogvideox() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(16, 32, 32, 64), layers_per_block=1, norm_num_groups=8
    )


def hunyuan_video() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=8
    )


def ltx_video() -> Any:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=16,
        block_out_channels=(32, 64, 128, 128),
        decoder_block_out_channels=(32, 64, 128, 128),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )


def dc() -> Any:
    blocks = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(16, 32, 64, 64),
        decoder_block_out_channels=(16, 32, 64, 64),
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
    )


def tiny() -> Any:
    return diffusers.AutoencoderTiny()


# What to make it, and the shapes of images or a video and of their latents.
VAES: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[int, ...]]] = {
    "as SD's": (lambda: autoencoder(16, 32, 64, 64, layers=2), (1, 3, 128, 128), (1, 4, 16, 16)),
    "narrow": (lambda: autoencoder(8, 16), (1, 3, 64, 64), (1, 4, 32, 32)),
    "wide": (lambda: autoencoder(64, 64, 64), (2, 3, 32, 32), (2, 4, 8, 8)),
    "steep": (lambda: autoencoder(8, 32, 128), (1, 3, 64, 64), (1, 4, 16, 16)),
    "flat": (lambda: autoencoder(16), (1, 3, 32, 48), (1, 4, 32, 48)),
    "tiny": (tiny, (1, 3, 64, 64), (1, 4, 8, 8)),
    "DC": (dc, (1, 3, 64, 64), (1, 8, 8, 8)),
    "Wan": (wan, (1, 3, 9, 32, 32), (1, 16, 3, 4, 4)),
    "Wan 2.2": (wan_of_patches, (1, 3, 9, 64, 64), (1, 16, 3, 4, 4)),
    "CogVideoX": (cogvideox, (1, 3, 17, 32, 32), (1, 16, 5, 4, 4)),
    "HunyuanVideo": (hunyuan_video, (1, 3, 9, 32, 32), (1, 16, 3, 4, 4)),
    "LTX-Video": (ltx_video, (1, 3, 9, 64, 64), (1, 16, 2, 2, 2)),
}


def calls_of(vae: Any, part: str, shape: tuple[int, ...]) -> list[tuple[Any, Any, int]]:
    """Of each call of a part when a VAE encodes or decodes: estimates, without tiles and with them,
    and the peak that is measured."""
    child, calls = getattr(vae, part), []
    forward = child.forward

    def measured(*args: Any, **kwargs: Any) -> Any:
        # Before: they change what they are given.
        expected = estimate(vae, part, args, kwargs), tiled(vae, part, args, kwargs)
        with Activations() as counted:
            out = forward(*args, **kwargs)
        calls.append((*expected, counted.peak))
        return out

    child.forward = measured
    sample = torch.zeros(shape, dtype=next(vae.parameters()).dtype)
    with torch.inference_mode():
        (vae.encode if part == "encoder" else vae.decode)(sample)
    child.forward = forward
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VAES)
def test_an_estimate_is_at_least_what_is_measured_and_at_most_four_times_that(
    name: str, dtype: Any
) -> None:
    make, images, latents = VAES[name]
    vae = make().eval().to(dtype)
    for part, shape in (("encoder", images), ("decoder", latents)):
        for expected, _tiled, peak in calls_of(vae, part, shape):
            assert expected is not None
            assert peak <= expected <= 4 * peak, (part, expected / peak)


def test_the_estimate_for_sd_is_what_others_have_measured() -> None:
    with torch.device("meta"):
        vae = autoencoder(128, 256, 512, 512, layers=2).half()
        pixels = 1024 * 1024
        encoding = estimate(vae, "encoder", (torch.empty(1, 3, 1024, 1024).half(),), {})
        decoding = estimate(vae, "decoder", (), {"sample": torch.empty(1, 4, 128, 128).half()})
        batch = estimate(vae, "decoder", (torch.empty(4, 4, 128, 128),), {})
    assert encoding == pytest.approx(1100 * pixels * 2, rel=0.01)
    assert decoding == pytest.approx(2200 * pixels * 2, rel=0.01)
    # In float32, since what it is given is.
    assert batch == pytest.approx(2200 * pixels * 4 * 4, rel=0.01)


def test_there_is_no_estimate_for_anything_else(unet: Any) -> None:
    vae, latents = autoencoder(8, 8), torch.empty(1, 4, 8, 8)
    for module, part, args in (
        (unet, "unet", (latents,)),
        (unet, "decoder", (latents,)),
        (torch.nn.Identity(), "decoder", (latents,)),
        (vae, "quant_conv", (latents,)),
        (vae, "decoder", ()),
        (vae, "decoder", (torch.empty(3, 4),)),
    ):
        assert estimate(module, part, args, {}) is None
        assert tiled(module, part, args, {}) is None


@pytest.mark.parametrize(
    ("name", "images", "latents"),
    [
        ("as SD's", (1, 3, 80, 80), (1, 4, 10, 10)),
        # So large that what comes out is most of it.
        ("narrow", (1, 3, 160, 160), (1, 4, 80, 80)),
        ("tiny", (1, 3, 80, 80), (1, 4, 10, 10)),
        ("DC", (1, 3, 80, 80), (1, 8, 10, 10)),
        ("Wan", (1, 3, 1, 80, 80), (1, 16, 1, 10, 10)),
        ("HunyuanVideo", (1, 3, 5, 48, 48), (1, 16, 2, 6, 6)),
    ],
)
def test_with_tiles_it_is_less_and_as_much_as_is_measured_then(
    name: str, images: tuple[int, ...], latents: tuple[int, ...]
) -> None:
    vae = VAES[name][0]().eval()
    in_latents = 32 * latents[-1] // images[-1]
    for side in ("height", "width"):
        if hasattr(vae, f"tile_sample_min_{side}"):
            setattr(vae, f"tile_sample_min_{side}", 32)
            setattr(vae, f"tile_latent_min_{side}", in_latents)
            setattr(vae, f"tile_sample_stride_{side}", 24)
    if hasattr(vae, "tile_sample_min_size"):
        vae.tile_sample_min_size, vae.tile_latent_min_size = 32, in_latents
    for part, shape in (("encoder", images), ("decoder", latents)):
        vae.disable_tiling()
        [(whole, in_tiles, _peak)] = calls_of(vae, part, shape)
        vae.enable_tiling()
        assert tiled(vae, part, (torch.zeros(shape),), {}) is None
        with torch.inference_mode(), Activations() as counted:
            (vae.encode if part == "encoder" else vae.decode)(torch.zeros(shape))
        assert whole is not None
        assert in_tiles is not None
        assert counted.peak <= in_tiles <= 4 * counted.peak
        assert in_tiles < whole


def test_tiles_that_are_not_smaller_help_nothing() -> None:
    vae = autoencoder(8, 8)
    vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 16
    assert tiled(vae, "decoder", (torch.empty(1, 4, 16, 16),), {}) is None
    assert tiled(vae, "encoder", (torch.empty(1, 3, 32, 32),), {}) is None
    assert tiled(vae, "encoder", (torch.empty(1, 3, 33, 32),), {}) is not None
