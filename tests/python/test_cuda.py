"""Pages on CUDA devices: the real path through cudarc, against a pretended driver (tests/pretend_cuda).

torch cannot be asked here, because it would want the rest of CUDA too: bytes are looked at.

What only a GPU can show, because torch must touch its memory: `test_residence.py`, models on a device,
which runs on virtual devices here and by `tests/gpu` there; and of `test_arena.py` what is marked so.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import pretended, run_script
from placed import CARDS

PAGE = 2 << 20
PRELUDE = """
import ctypes, json, os, threading, time
import numpy as np
import coresident as co

def driver():
    return ctypes.CDLL("libcuda.so.1")

def count(what, device=-1):
    driver().pretend_cuda_count.restype = ctypes.c_int64
    return driver().pretend_cuda_count(what.encode(), device)

def peek(address, size):
    bytes_ = ctypes.create_string_buffer(size)
    code = driver().pretend_cuda_peek(ctypes.c_uint64(address), bytes_, ctypes.c_size_t(size))
    return bytes_.raw if code == 0 else None

def area_of(arena, *arrays, key="model"):
    return arena.area(co.WeightStore().share(key, {f"t{n}": a for n, a in enumerate(arrays)}))

ones = np.ones(3 << 20, np.uint8)
"""

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both pretended libraries."""
    folder = tmp_path_factory.mktemp("drivers")
    pretended("pretend_nvml", "libnvidia-ml.so.1", folder)
    return pretended("pretend_cuda", "libcuda.so.1", folder)


def ask_at(
    folder: Path, source: str, driver: str, nvml: str = "A 3090:1GiB,A 3090:1GiB", **more: str
) -> Any:
    """What the source assigns to `told`, in a fresh interpreter that finds drivers in this folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    folders = [str(folder), *filter(None, [env.get("LD_LIBRARY_PATH")])]
    env |= {"LD_LIBRARY_PATH": os.pathsep.join(folders)}
    # NVML's cards are whole GiB: that the driver has less is what others have.
    env |= {"PRETEND_NVML": nvml, "PRETEND_CUDA": driver} | more
    body = PRELUDE + textwrap.dedent(source) + "\nprint(json.dumps(told))\n"
    done = run_script(body, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def ask(drivers: Path) -> Ask:
    def ask(source: str, driver: str = "A 3090:64MiB,A 3090:64MiB,delay:300us", **more: str) -> Any:
        """The same with these devices, which NVML shows too."""
        return ask_at(drivers, source, driver, **more)

    return ask


@pytest.fixture
def ask_cuda(tmp_path: Path) -> Ask:
    """The same where there is no NVML."""
    folder = pretended("pretend_cuda", "libcuda.so.1", tmp_path)
    return lambda source, driver: ask_at(folder, source, driver)


@pytest.mark.timeout(240)
def test_arenas_are_on_cards_what_they_are_on_virtual_devices(tmp_path: Path) -> None:
    folder = pretended("pretend_cuda", "libcuda.so.1", tmp_path)
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    folders = [str(folder), *filter(None, [env.get("LD_LIBRARY_PATH")])]
    env |= {"LD_LIBRARY_PATH": os.pathsep.join(folders), "CORESIDENT_TEST_DEVICE": "pretended"}
    suites = [
        str(Path(__file__).with_name(name)) for name in ("test_arena.py", "test_stream_blocks.py")
    ]
    command = [sys.executable, "-m", "pytest", "-q", *suites]
    done = subprocess.run(
        command, env=env | {"PRETEND_CUDA": CARDS}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    assert counts["passed"] > 3 * counts["skipped"] > 0


def test_a_context_is_made_when_a_devices_memory_is_used_and_not_before(ask: Ask) -> None:
    told = ask("""
        with co.Runtime() as runtime:
            device = runtime.devices[0]
            before = [count("cuInit"), count("contexts_created")]
            area = area_of(runtime.arenas[device], ones)
            with area.fault():
                after = [count("cuInit"), count("contexts_created")]
        told = [str(device), device.paged, before, after]
        """)
    assert told == ["cuda:0", True, [0, 0], [1, 1]]


def test_weights_come_to_the_device_and_leave_it(ask: Ask) -> None:
    told = ask("""
        with co.Runtime() as runtime:
            arena = runtime.arenas[runtime.devices[1]]
            random = np.random.default_rng(0)
            arrays = [random.integers(0, 256, size, np.uint8) for size in (5, 3 << 20, 700, 0, 9)]
            area = area_of(arena, *arrays)
            with area.fault(working_memory="4MiB") as pins:
                tensor = area.pinned("t1")
                device = tensor.__dlpack_device__()
                residency = area.residency().tolist()
                used = arena.budget.used
            del tensor
            copies = count("cuMemcpyHtoDAsync", 1)
            with area.fault():
                pass
            copied_again = count("cuMemcpyHtoDAsync", 1) - copies
            pageable = count("pageable_bytes_in", 1)
            mapped = count("mappings", 1), count("mappings", 0)
            while arena.status().resident:
                # What streams still use stays until they are done.
                arena.evict()
            gone = count("mappings", 1), arena.budget.used
        told = [device, residency, used, copies, copied_again, pageable, mapped, gone]
        """)
    assert told == [[2, 1], [2, 2], 2 * PAGE + (4 << 20), 1, 0, 0, [2, 0], [0, 0]]


def test_the_bytes_on_the_device_are_those_of_the_weights(ask: Ask) -> None:
    told = ask("""
        with co.Runtime() as runtime:
            random = np.random.default_rng(0)
            arrays = [random.integers(0, 256, 3 << 20, np.uint8) for _ in range(12)]
            arena = runtime.arenas[runtime.devices[0]]
            areas = [area_of(arena, array, ones, key=f"model {n}") for n, array in enumerate(arrays)]

            def address(tensor):
                # What a consumer finds in the capsule.
                pointer = ctypes.pythonapi.PyCapsule_GetPointer
                pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
                return ctypes.cast(pointer(tensor, b"dltensor"), ctypes.POINTER(ctypes.c_uint64))[0]

            right = []
            def job(number):
                for turn in range(30):
                    at = (number * 5 + turn) % 12
                    tensor = areas[at].pinned("t0")
                    capsule = tensor.__dlpack__()
                    # The default stream comes after the copies: what is on it is done by then.
                    right.append(check(address(capsule), arrays[at]))
                    del capsule, tensor

            def check(at, array):
                library = driver()
                result = ctypes.c_uint32(0xFFFFFFFF)
                library.pretend_cuda_hash.restype = ctypes.c_uint64
                expected = library.pretend_cuda_hash(array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.size))
                context = ctypes.c_void_p()
                library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
                library.cuCtxSetCurrent(context)
                code = library.pretend_cuda_launch_check(
                    ctypes.c_size_t(0), ctypes.c_uint64(at), ctypes.c_size_t(array.size),
                    ctypes.c_uint64(expected), ctypes.byref(result))
                library.cuStreamSynchronize(ctypes.c_void_p())
                return [code, result.value]

            threads = [threading.Thread(target=job, args=(n,)) for n in range(3)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            pinned = arena.status().pinned
        told = [len(right), sorted(set(map(tuple, right))), pinned]
        """)
    assert told == [90, [[0, 1]], 0]


def test_without_a_driver_the_device_has_no_pages(ask: Ask, tmp_path: Path) -> None:
    done = run_script(
        """
        import coresident as co
        device = co.devices("cuda:0")[0]
        print(device.paged)
        try:
            co.Arena(device, co.Budget(device))
        except co.InvalidDeviceError as error:
            print(error)
        """,
        env=os.environ
        | {
            "LD_LIBRARY_PATH": str(pretended("pretend_nvml", "libnvidia-ml.so.1", tmp_path)),
            "PRETEND_NVML": "A 3090:1GiB",
        },
    )
    assert done.stdout.startswith("False\ncuda:0 has no memory of its own in which pages"), done


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        ("A 3090:64MiB,version:11000", "its driver knows CUDA 11.0, and 11.2 is needed"),
        ("A 3090:64MiB,fail:cuInit=100", "cuInit says CUDA_ERROR_NO_DEVICE"),
        ("A 3090:64MiB,lost:0", "CUDA_ERROR_DEVICE_UNAVAILABLE"),
    ],
)
def test_what_is_no_use_says_why_and_nothing_is_left(ask: Ask, driver: str, why: str) -> None:
    told = ask(
        """
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        told = []
        for _ in range(2):
            try:
                area_of(arena, ones).fault()
            except (co.DeviceLostError, co.InvalidDeviceError) as error:
                told += [str(error), getattr(error, "device", "cuda:0"), arena.budget.used]
        """,
        driver=driver,
    )
    assert told[1:3] == told[4:6] == ["cuda:0", 0]
    assert why in told[0]


def test_a_stream_is_given_by_its_handle(ask: Ask) -> None:
    told = ask("""
        device = co.devices("cuda:0")[0]
        area = area_of(co.Arena(device, co.Budget(device)), ones)
        with area.fault(stream=0), area.fault():
            pass
        told = []
        for wrong in ("0", -1, 1 << 70):
            try:
                area.fault(stream=wrong)
            except (co.InvalidTypeError, co.InvalidValueError) as error:
                told.append(str(error))
        """)
    assert told[0] == "stream is a whole number, not str"
    assert all("stream must be between 0 and 2**64 - 1" in message for message in told[1:])


def test_a_forked_child_is_refused_and_makes_no_call(ask: Ask) -> None:
    told = ask("""
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        area = area_of(arena, ones)
        pins = area.fault()
        tensor = area.pinned("t0")
        read, write = os.pipe()
        if os.fork() == 0:
            try:
                area.fault()
            except co.ForkedError:
                pass
            try:
                fresh = co.Arena(device, co.Budget(device))
                area_of(fresh, ones, key="other").fault()
            except co.CoresidentError as error:
                os.write(write, str(error).encode())
            pins.release()
            del tensor, pins, area, arena
            os._exit(0)
        status = os.wait()[1]
        child = os.read(read, 1000).decode()
        mapped = count("mappings")
        pins.release()
        told = [status, child, mapped]
        """)
    assert told[0] == 0
    assert "CUDA was begun before this process was forked" in told[1]
    assert told[2] == 2


def test_the_interpreter_ends_while_copies_run(ask: Ask) -> None:
    told = ask(
        """
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        areas = [area_of(arena, ones, key=f"model {n}") for n in range(8)]
        kept = [area.fault() for area in areas[:3]]
        tensor = areas[0].pinned("t0")
        for area in areas[3:]:
            threading.Thread(target=area.fault, daemon=True).start()
        told = "ended"
        """,
        driver="A 3090:64MiB:bus=20MiB/s,delay:20ms",
    )
    assert told == "ended"


def test_pages_that_cannot_be_had_leave_nothing_behind(ask: Ask) -> None:
    told = ask(
        """
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        area, other = area_of(arena, ones), area_of(arena, ones, key="other")
        other.fault().release()
        driver().pretend_cuda_set_taken(0, ctypes.c_uint64(60 << 20))
        told = []
        try:
            kept = other.fault()
            area.fault()
        except co.DeviceMemoryError as error:
            told += [str(error), error.free]
        told += [area.residency().tolist(), count("mappings", 0)]
        driver().pretend_cuda_set_taken(0, ctypes.c_uint64(0))
        area.fault().release()
        told += [area.residency().tolist(), count("events", 0) < 8]
        """,
    )
    assert told[0].startswith(
        'cuda:0 is out of memory: "model" needs 4 MiB more there, 0 B is free'
    )
    assert told[1:] == [0, [0, 0], 2, [1, 1], True]


def test_who_waits_for_a_slow_bus_can_give_up(ask: Ask) -> None:
    told = ask(
        """
        import signal, time
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        area = area_of(arena, np.ones(48 << 20, np.uint8))
        told = []
        for give_up in (dict(timeout=0.1), dict(cancel=co.CancelToken())):
            if "cancel" in give_up:
                threading.Timer(0.1, give_up["cancel"].cancel).start()
            began = time.monotonic()
            try:
                area.fault(**give_up)
            except (co.WaitTimeoutError, co.CancelledError) as error:
                told.append([str(error)[-60:], time.monotonic() - began < 0.4])
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            area.fault()
        except KeyboardInterrupt:
            told.append("interrupted")
        told.append([arena.status().pinned, arena.status().resident == arena.budget.used])
        driver().pretend_cuda_set_bus(0, ctypes.c_uint64(0))
        area.fault().release()
        """,
        driver="A 3090:64MiB:bus=24MiB/s",
    )
    assert all("to be copied to cuda:0" in message for message, _ in told[:2])
    assert [quick for _, quick in told[:2]] == [True, True]
    assert told[2:] == ["interrupted", [0, True]]


def test_what_fails_once_may_go_well_the_next_time(ask: Ask) -> None:
    told = ask(
        """
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        told = []
        for _ in range(6):
            try:
                area_of(arena, ones).fault().release()
                told.append("resident")
            except co.DeviceLostError as error:
                told.append(str(error))
        """,
        driver="A 3090:64MiB,fail:cuDevicePrimaryCtxRetain=2*3",
    )
    assert "CUDA_ERROR_OUT_OF_MEMORY" in told[0]
    assert told[-1] == "resident"


def test_a_handle_that_is_none_leaves_the_device_as_it_was(ask: Ask) -> None:
    told = ask("""
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        area = area_of(arena, ones)
        told = []
        for handle in (0x12345, 2):
            try:
                area.fault(stream=handle)
            except (co.DeviceLostError, co.InvalidValueError) as error:
                told.append(str(error))
            arena.evict()
        for _ in range(20):
            area.fault().release()
            arena.evict()
        told.append(arena.status().pinned)
        """)
    assert "stream is no handle: cuda:0 is lost: cuEventRecord says" in told[0]
    assert "stream is 2, the default stream of whichever thread" in told[1]
    assert told[2] == 0


def test_the_last_to_have_an_arena_leaves_nothing_on_the_device(ask: Ask) -> None:
    told = ask("""
        for _ in range(5):
            device = co.devices("cuda:0")[0]
            arena = co.Arena(device, co.Budget(device))
            area = area_of(arena, ones)
            area.fault().release()
            del area, arena
            # What a stream still uses leaves when it is done, behind the back of who lets go.
            for _ in range(5000):
                if count("mappings") + count("reservations") == 0:
                    break
                time.sleep(0.001)
        told = [count("mappings"), count("reservations"), count("streams") <= 2]
        """)
    assert told == [0, 0, True]


def test_a_consumers_stream_waits_for_the_content_and_the_pages_for_it(ask: Ask) -> None:
    told = ask("""
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        tensor = area_of(arena, ones).pinned("t0")
        library = driver()
        context, stream = ctypes.c_void_p(), ctypes.c_size_t()
        library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        library.cuCtxSetCurrent(context)
        library.cuStreamCreate(ctypes.byref(stream), 1)
        before = count("cuStreamWaitEvent")
        capsule = tensor.__dlpack__(stream=stream.value)
        again = tensor.__dlpack__(stream=stream.value)
        waited = count("cuStreamWaitEvent") - before
        told = [waited]
        for wrong in (0, 2, -7, "s"):
            try:
                tensor.__dlpack__(stream=wrong)
            except (co.InvalidValueError, TypeError, BufferError, ValueError) as error:
                told.append(type(error).__name__)
        recorded = count("cuEventRecord")
        del capsule, again, tensor
        told.append(count("cuEventRecord") - recorded)
        """)
    assert told[0] == 1
    assert len(told) == 6, "each that is wrong is refused"
    assert told[-1] == 2, "one mark for each stream that used it"


@pytest.mark.parametrize("pages", ["", ":no-vmm"])
def test_somebody_elses_graph_is_not_spoilt(ask: Ask, pages: str) -> None:
    told = ask(
        """
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        areas = [area_of(arena, ones, key=f"model {n}") for n in range(20)]
        areas[0].fault().release()
        library = driver()
        context, stream = ctypes.c_void_p(), ctypes.c_size_t()
        library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        library.cuCtxSetCurrent(context)
        library.cuStreamCreate(ctypes.byref(stream), 1)
        begun = library.pretend_cuda_capture(stream, 0)

        def work():
            for area in areas:
                area.fault(timeout=10).release()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        told = [begun, library.pretend_cuda_capture(stream, -1), arena.status().pinned]
        """,
        driver=f"A 3090:64MiB{pages},delay:300us",
    )
    assert told == [0, 0, 0]


@pytest.mark.parametrize(
    ("function", "times"), [("cuMemcpyHtoDAsync", 1), ("cuEventRecord", 4), ("cuEventRecord", 1)]
)
def test_a_copy_that_failed_is_made_again_by_whoever_comes_next(
    ask: Ask, function: str, times: int
) -> None:
    told = ask(
        f"""
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        area_of(arena, ones, key="begun").fault().release()
        area = area_of(arena, ones)
        driver().pretend_cuda_fail(b"{function}", 999, ctypes.c_uint64({times}), ctypes.c_uint64(0), 0)
        told = []
        for _ in range(6):
            try:
                # The default stream comes after the copies.
                tensor = area.pinned("t0")
                told.append("resident")
            except co.DeviceLostError as error:
                told.append(str(error))
        told.append(arena.status().resident == arena.budget.used)
        """,
        # So late that the next one comes while the stream has not come to what has failed.
        driver="A 3090:64MiB,delay:20ms",
    )
    assert told[1:] == ["resident"] * 5 + [True]


def test_weights_are_page_locked_where_they_lie_if_a_runtime_pins_all(
    ask: Ask, tmp_path: Path
) -> None:
    told = ask(f"""
        from safetensors.numpy import save_file
        path = {str(tmp_path / "model.safetensors")!r}
        save_file({{"large": np.ones(6 << 20, np.uint8), "small": np.ones(100, np.uint8)}}, path)
        told = []
        for pin in ("all", "staging", "none"):
            with co.Runtime(pin=pin) as runtime:
                arena = runtime.arenas[runtime.devices[0]]
                weights = runtime.weights.open("model", path, copy=True)
                with arena.area(weights).fault():
                    [status] = runtime.weights.status()
                    ram = runtime.ram.used - weights.nbytes
                    locked = [status.locked, runtime.weights.locked] == [weights.nbytes] * 2
                    told.append([arena.pin, locked, ram >> 20])
                weights.release()
        import gc, time
        del weights, arena, runtime, status
        gc.collect()
        patience = time.monotonic() + 20
        while count("pinned_bytes") and time.monotonic() < patience:
            time.sleep(0.01)
        told.append(count("pinned_bytes"))
        """)
    assert told == [["all", True, 32], ["staging", False, 32], ["none", False, 0], 0]


def test_a_file_that_is_mapped_is_never_page_locked(ask: Ask, tmp_path: Path) -> None:
    told = ask(f"""
        from safetensors.numpy import save_file
        path = {str(tmp_path / "model.safetensors")!r}
        save_file({{"large": np.ones(6 << 20, np.uint8)}}, path)
        with co.Runtime(pin="all") as runtime:
            weights = runtime.weights.open("model", path)
            with runtime.arenas[runtime.devices[0]].area(weights).fault():
                told = [runtime.weights.stats()["mapped"] > 0, count("cuMemHostRegister")]
        """)
    assert told == [True, 0]


def test_without_nvml_cuda_is_asked_itself_and_makes_no_context(ask_cuda: Ask) -> None:
    told = ask_cuda(
        """
        device, other = co.devices("auto")
        told = [str(device), device.label, device.memory >> 20, device.free_memory(), device.paged]
        told += [co.Budget(device).limit > 0, count("contexts_created")]
        with area_of(co.Arena(device, co.Budget(device)), ones).fault():
            told += [device.free_memory() >> 20, other.free_memory()]
        """,
        driver="NVIDIA Orin:64MiB,NVIDIA Orin:64MiB",
    )
    assert told == ["cuda:0", "Orin #1 (cuda:0)", 64, None, True, True, 0, 60, None]


def test_integrated_memory_is_the_hosts(ask_cuda: Ask) -> None:
    told = ask_cuda(
        """
        [device] = co.devices("auto")
        told = [device.free_memory() > 0, count("contexts_created")]
        """,
        driver="NVIDIA Orin:64MiB:integrated",
    )
    assert told == [True, 0]


def test_a_card_that_somebody_else_uses_tells_what_is_free_of_it(ask_cuda: Ask) -> None:
    told = ask_cuda(
        """
        [device] = co.devices("auto")
        told = [device.free_memory()]
        context = ctypes.c_void_p()
        driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        told += [device.free_memory() >> 20, device.free_memory() >> 20]
        """,
        driver="A 3090:64MiB:no-vmm",
    )
    assert told == [None, 64, 64]


@pytest.mark.parametrize("visible", ["1", "GPU-00000001", "1,0"])
def test_the_first_visible_card_is_the_first_to_nvml_and_cuda_alike(ask: Ask, visible: str) -> None:
    told = ask(
        """
        device = co.devices("auto")[0]
        arena = co.Arena(device, co.Budget(device))
        area = area_of(arena, ones)
        with area.fault():
            context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
            driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
            driver().cuCtxSetCurrent(context)
            driver().cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        told = [str(device), device.model, total.value - free.value, total.value >> 20]
        """,
        driver="A 3090:64MiB,A 4090:128MiB",
        nvml="A 3090:1GiB,A 4090:1GiB",
        CUDA_VISIBLE_DEVICES=visible,
    )
    assert told[0] == "cuda:0"
    assert "4090" in told[1]
    assert told[2:] == [2 * PAGE, 128]


def test_no_visible_card_is_no_device(ask: Ask) -> None:
    told = ask("told = [str(one) for one in co.devices('auto')]", CUDA_VISIBLE_DEVICES="")
    assert told == ["cpu"]


def test_memory_of_the_hosts_that_nvml_does_not_tell_of_is_known_once_it_is_used(ask: Ask) -> None:
    told = ask(
        """
        device = co.devices("cuda:0")[0]
        told = [device.memory, device.free_memory(), count("cuInit")]
        area_of(co.Arena(device, co.Budget(device, limit="64MiB")), ones).fault().release()
        told.append(device.free_memory() > 64 << 20)
        """,
        driver="NVIDIA GB10:64MiB:integrated",
        nvml="NVIDIA GB10:1GiB,nomemory:0",
    )
    assert told == [None, None, 0, True]


def test_a_driver_without_a_symbol_says_which(tmp_path: Path) -> None:
    # Any library will do that has none of the driver's calls.
    pretended("pretend_nvml", "libnvidia-ml.so.1", tmp_path)
    (tmp_path / "libcuda.so.1").symlink_to(tmp_path / "libnvidia-ml.so.1")
    done = run_script(
        """
        import coresident as co
        device = co.devices("cuda:0")[0]
        arena = co.Arena(device, co.Budget(device))
        try:
            arena.area(co.WeightStore().share("m", {})).fault()
        except co.DeviceLostError as error:
            print(error)
        """,
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PRETEND_NVML": "A 3090:1GiB"},
    )
    assert "no CUDA here, because its driver has no cuInit: it is too old" in done.stdout, done


def test_a_device_that_is_lost_while_it_is_used_is_an_error_and_others_go_on(ask: Ask) -> None:
    told = ask("""
        devices = co.devices(["cuda:0", "cuda:1"])
        arenas = [co.Arena(device, co.Budget(device)) for device in devices]
        areas = [[area_of(arena, ones, key=f"model {n}") for n in range(3)] for arena in arenas]
        held = [pair[0].fault() for pair in areas]
        tensor = areas[0][1].pinned("t0")
        driver().pretend_cuda_lose(0, 719)
        told = []
        for area in areas[0][1:]:
            try:
                area.fault(timeout=10)
            except co.DeviceLostError as error:
                told.append([error.device, "CUDA_ERROR_LAUNCH_FAILED" in str(error)])
        for area in areas[1]:
            area.fault().release()
        held[0].release()
        held[1].release()
        del tensor
        told.append([arenas[0].evict(), arenas[0].status().pinned, arenas[1].status().pinned])
        """)
    assert ["cuda:0", True] in told[:-1]
    assert told[-1] == [0, 0, 0]


def test_what_is_written_by_whoever_has_it_is_never_page_locked(ask: Ask, tmp_path: Path) -> None:
    told = ask(f"""
        from safetensors.numpy import save_file
        path = {str(tmp_path / "model.safetensors")!r}
        save_file({{"large": np.ones(6 << 20, np.uint8)}}, path)
        with co.Runtime(pin="all") as runtime:
            weights = runtime.weights.open("model", path, copy=True)
            private = weights.private()
            with runtime.arenas[runtime.devices[0]].area(private).fault():
                told = [count("cuMemHostRegister"), runtime.weights.locked]
        """)
    assert told == [0, 0]
