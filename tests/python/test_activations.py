"""Bytes of activations, counted as torch makes and frees them; and a device that is full of them."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import run_script, spawn

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
diffusers = pytest.importorskip("diffusers", reason="comes with the test extra")

import tiny_models  # noqa: E402
from coresident.torch.activations import Activations  # noqa: E402

KIB = 1024


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_models.attentive_unet()


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
    vae = tiny_models.autoencoder(8, 16)
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
        for _ in range(200):
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
    assert most <= counted.peak <= 600 * KIB
