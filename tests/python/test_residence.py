"""Models whose weights come to a device and leave it: `Model.on`."""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import coresident as co
import pytest
from conftest import run_script, spawn, until

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "peft", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402
import tiny_models  # noqa: E402

PAGE = 2 << 20


class Blocks(torch.nn.Module):  # type: ignore[misc] # torch's own types are not looked at
    """Some pages of weights, and activations of a known size."""

    def __init__(self, pages: int = 2, activations: int = 0) -> None:
        super().__init__()
        side = 1 << 9
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(2 * side, side, bias=False) for _ in range(pages)
        )
        self.activations = activations
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.cat([layer(x), x[..., : layer.out_features]], dim=-1) / 2
        space = torch.empty(self.activations, dtype=torch.uint8)
        return x * self.scale + 0 * space.numel()


def blocks(pages: int = 2, activations: int = 0, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Blocks(pages, activations)


def runtime(pages: int, count: int = 1, **options: Any) -> co.Runtime:
    devices = co.virtual_devices(count, memory=pages * PAGE, jitter=11)
    return co.Runtime(devices, **options)


@pytest.fixture
def house() -> Iterator[co.Runtime]:
    """One device of eight pages."""
    with runtime(8) as made:
        yield made


def x(seed: int = 1) -> Any:
    return torch.randn(2, 1 << 10, generator=torch.Generator().manual_seed(seed))


def starts(module: Any) -> list[int]:
    return [tensor.data_ptr() for tensor in module.state_dict().values()]


def test_inside_the_weights_are_on_the_device_and_outside_in_host_memory(house: co.Runtime) -> None:
    model = house.load("blocks", lambda: blocks(3))
    [device] = house.devices
    replica = model.replica(device)
    host = starts(replica.module)
    with replica.on() as module:
        assert module is replica.module
        inside = starts(module)
        assert not set(inside) & set(host)
        assert house.analyze(device).pinned == 4 * PAGE
        result = module(x())
    assert starts(replica.module) == host
    assert house.analyze(device).pinned == 0
    assert torch.equal(result, replica.module(x())), "the same on the device and in host memory"
    with replica.on() as module:
        assert starts(module) == inside, "addresses stay"
    replica.release()


def test_when_all_fits_nothing_moves(house: co.Runtime) -> None:
    [device] = house.devices
    models = [house.load(f"blocks {at}", lambda at=at: blocks(2, seed=at)) for at in range(2)]
    for model in models:
        with model.on(device) as module:
            # Nobody but us knows: filled again, it would be gone.
            module.layers[0].weight.data[0, 0] = 42
    for _ in range(5):
        for model in models:
            with model.on(device) as module:
                assert module.layers[0].weight[0, 0] == 42
    assert house.analyze(device).resident == house.vram[device].used == 6 * PAGE


def test_models_that_do_not_fit_together_are_bit_identical_to_resident_ones(tmp_path: Path) -> None:
    made = tiny_models.models()
    for name in ("unet2", "vae", "clip"):
        made[name].save_pretrained(tmp_path / name)
    inputs = {
        "unet2": (torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 5, 8)),
        "vae": (torch.randn(1, 3, 16, 16),),
        "clip": (torch.arange(7).unsqueeze(0),),
    }

    def outputs(pages: int, rounds: int) -> list[Any]:
        with runtime(pages) as house, torch.inference_mode():
            models = {name: house.load(name, tmp_path / name) for name in inputs}
            results = []
            for _ in range(rounds):
                for name, model in models.items():
                    with model.on(house.devices[0]) as module:
                        results.append(module(*inputs[name])[0])
            return results

    everything, little = outputs(64, 2), outputs(2, 2)
    assert all(torch.equal(one, other) for one, other in zip(everything, little, strict=True))


def test_a_thousand_switches_between_three_models_that_do_not_fit(house: co.Runtime) -> None:
    [device] = house.devices
    models = [house.load(f"blocks {at}", lambda at=at: blocks(2, seed=at)) for at in range(3)]
    expected = [blocks(2, seed=at).state_dict() for at in range(3)]
    random = torch.Generator().manual_seed(0)
    for turn in range(1000):
        at = int(torch.randint(3, (1,), generator=random))
        with models[at].on(device) as module:
            own = module.state_dict()
            assert all(torch.equal(own[name], expected[at][name]) for name in own), turn
        status = house.analyze(device)
        assert status.resident == house.vram[device].used == 8 * PAGE - device.free_memory()
        assert status.resident <= 8 * PAGE


def test_several_threads_on_several_devices_use_the_same_models() -> None:
    with runtime(6, count=2) as house:
        models = [house.load(f"blocks {at}", lambda at=at: blocks(1, seed=at)) for at in range(3)]
        expected = [blocks(1, seed=at)(x()) for at in range(3)]

        def job(number: int) -> None:
            device = house.devices[number % 2]
            for turn in range(30):
                at = (number + turn) % 3
                with models[at].on(device) as module, torch.no_grad():
                    assert torch.equal(module(x()), expected[at])

        for thread in [spawn(lambda n=n: job(n), name=f"job {n}") for n in range(4)]:
            thread.join()
        for device in house.devices:
            assert house.analyze(device).pinned == 0
            assert house.analyze(device).resident == house.vram[device].used


def test_a_device_never_evicts_what_another_one_uses() -> None:
    with runtime(4, count=2) as house:
        first, second = house.devices
        model, other = (house.load(key, lambda: blocks(2)) for key in ("model", "other"))
        with model.on(first):
            before = house.analyze(first).areas[0].resident
            other.on(second).release()
            model.on(second).release()
            other.on(second).release()
            assert house.analyze(first).areas[0].resident == before


def test_working_memory_is_reserved_with_the_weights_and_given_back(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(2))
    other = house.load("other", lambda: blocks(4, seed=1))
    other.on(device).release()
    with model.on(device, working_memory=4 * PAGE) as module:
        status = house.analyze(device)
        [resident] = [area.resident for area in status.areas if area.key == "other"]
        assert house.vram[device].used == 7 * PAGE + resident
        module(x())
    with pytest.raises(co.BudgetExceededError, match="virtual:0"):
        model.on(device, working_memory=6 * PAGE, stream=False)
    assert house.analyze(device).pinned == 0


def test_what_a_call_needs_is_learned_and_reserved_the_next_time(tmp_path: Path) -> None:
    learned = tmp_path / "needs.json"
    for turn in range(2):
        with runtime(8, working_memory=learned) as house:
            [device] = house.devices
            model = house.load("blocks", lambda: blocks(2, activations=3 * PAGE))
            residence = model.on(device)
            with residence as module:
                if turn == 0:
                    assert residence.working_memory == 0
                    module(x())
                    assert residence.working_memory == 0
                module(x())
                assert 3 * PAGE <= residence.working_memory <= 3 * PAGE + (64 << 10)
                assert learned.is_file()
                assert house.vram[device].used == 3 * PAGE + residence.working_memory
            assert house.vram[device].used == 3 * PAGE


def test_a_call_that_was_seen_to_need_too_much_is_refused_at_once(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(2, activations=4 * PAGE))
    with model.on(device) as module:
        module(x())
    house.vram[device].limit = 6 * PAGE
    with model.on(device, stream=False) as module:
        with pytest.raises(
            co.BudgetExceededError, match="of working memory on virtual:0 beside 6 MiB"
        ):
            module(x())
        # Another shape: nobody has seen yet that it needs as much.
        module(x()[:1])


def test_a_full_device_is_tried_once_more_after_everything_unused_has_left(
    house: co.Runtime,
) -> None:
    [device] = house.devices
    other = house.load("other", lambda: blocks(4, seed=1))
    model = house.load("blocks", lambda: blocks(1, activations=3 * PAGE))
    other.on(device).release()
    with model.on(device) as module:
        assert house.analyze(device).resident == 7 * PAGE
        module(x())
        assert house.analyze(device).resident == 2 * PAGE


def test_the_second_failure_tells_what_was_needed_and_what_was_there(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(1, activations=7 * PAGE))
    held = house.load("held", lambda: blocks(1)).on(device)
    with model.on(device) as module:
        with pytest.raises(co.DeviceMemoryError) as caught:
            module(x())
        told = str(caught.value)
        assert "'blocks' ran out of memory on virtual:0, where 8 MiB is free" in told
        assert "4 MiB of its own weights, 'held' has 4 MiB pinned" in told
        assert "asked for 14680064 bytes" in told
        assert caught.value.free <= 4 * PAGE
        del caught
        gc.collect()
        assert device.free_memory() == 4 * PAGE, "what failed is freed"
    held.release()


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    tiny_models.models()["vae"].save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_decoding_is_estimated_before_it_was_measured(vae: Path) -> None:
    with runtime(16) as house, torch.inference_mode():
        [device] = house.devices
        model = house.load("vae", vae)
        residence = model.on(device)
        with residence as module:
            z = torch.randn(1, 4, 64, 64)
            peaks = []
            module.decoder.conv_in.register_forward_pre_hook(
                lambda *_: peaks.append(residence.working_memory)
            )
            image = module.decode(z).sample
            measured = house._models_room().working_memory
            (key, _, _), _ = next(
                item for item in measured._peaks.items() if item[0][1] == "decoder"
            )
            assert key == "vae"
            assert peaks[0] > image.nbytes


def test_decoding_that_cannot_fit_tells_of_tiles(vae: Path) -> None:
    with runtime(3) as house, torch.inference_mode():
        [device] = house.devices
        with house.load("vae", vae).on(device) as module:
            with pytest.raises(co.BudgetExceededError, match=r"in tiles, with enable_tiling\(\)"):
                module.decode(torch.randn(1, 4, 512, 512))
            module.decode(torch.randn(1, 4, 16, 16))


def test_a_lora_on_one_replica_is_on_the_device_and_on_nobody_elses(tmp_path: Path) -> None:
    with runtime(8) as house:
        [device] = house.devices
        model = house.load("blocks", lambda: blocks(2))
        plain = blocks(2)(x())
        replica = model.replica(device)
        with ct.writable(replica) as module, torch.no_grad():
            module.layers[0].weight.mul_(2)
            with replica.on():
                patched = module(x())
                with model.on(device) as other:
                    assert torch.equal(other(x()), plain)
                # Written on the device, and kept.
                module.layers[1].weight.mul_(3)
            twice = module(x())
            with replica.on():
                assert torch.equal(module(x()), twice)
        assert not torch.equal(patched, plain)
        assert not torch.equal(twice, patched)
        with replica.on() as module, torch.no_grad():
            assert torch.equal(module(x()), plain)
        assert replica.release() == []


def test_stray_writes_on_the_device_are_named_and_undone(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(2))
    with pytest.warns(ct.StrayWriteWarning, match=r"layers\.1\.weight") as caught:
        with model.on(device) as module, torch.no_grad():
            module.layers[1].weight.add_(1)
    assert caught[0].filename == __file__
    with model.on(device) as module, torch.no_grad():
        assert torch.equal(module(x()), blocks(2)(x()))


def test_what_a_module_returns_can_be_used_after_its_weights_have_left(house: co.Runtime) -> None:
    class Queries(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.queries = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))

        def forward(self, n: int) -> Any:
            return {"queries": self.queries.expand(n, 2, 3), "both": (self.queries, [self.queries])}

    [device] = house.devices
    with house.load("queries", Queries).on(device) as module:
        out = module(4)
    house.arenas[device].evict()
    assert out["queries"].shape == (4, 2, 3)
    assert out["queries"].sum() == 60
    assert torch.equal(out["both"][0], out["both"][1][0])


def test_a_residence_that_is_forgotten_leaves_a_module_that_can_be_used(house: co.Runtime) -> None:
    [device] = house.devices
    replica = house.load("blocks", lambda: blocks(1)).replica(device)

    def forget() -> None:
        replica.on()
        # The replica would end it with itself.
        replica._resident = None
        gc.collect()

    with pytest.warns(ResourceWarning, match="<Residence of 'blocks' on virtual:0> was never"):
        forget()
    house.arenas[device].evict()
    assert house.analyze(device).resident == 0
    assert torch.equal(replica.module(x()), blocks(1)(x()))
    replica.release()


def test_releasing_the_replica_ends_its_residence(house: co.Runtime) -> None:
    [device] = house.devices
    replica = house.load("blocks", lambda: blocks(1)).replica(device)
    residence = replica.on()
    replica.release()
    assert residence.released
    assert house.analyze(device).pinned == 0
    residence.release()
    with pytest.raises(co.ReleasedError), residence:
        pass
    with pytest.raises(co.ReleasedError):
        replica.on()


def test_a_closed_model_leaves_the_device_when_its_last_user_does(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(2))
    residence = model.on(device)
    model.close()
    with residence as module:
        assert torch.equal(module(x()), blocks(2)(x()))
    del module, residence
    gc.collect()
    assert house.analyze(device).resident == 0
    assert device.free_memory() == 8 * PAGE
    with pytest.raises(co.ReleasedError):
        model.on(device)


def test_on_a_unified_device_and_the_cpu_nothing_is_moved() -> None:
    for name in ("virtual:1", "cpu"):
        with co.Runtime(name) as house:
            model = house.load("blocks", lambda: blocks(2))
            with model.on(name) as module, torch.no_grad():
                assert torch.equal(module(x()), blocks(2)(x()))
            with pytest.raises(co.InvalidDeviceError, match="no pages in this runtime"):
                house.analyze(name)


def test_a_model_of_a_higher_priority_stays(house: co.Runtime) -> None:
    [device] = house.devices
    first, second, third = (
        house.load(f"{at}", lambda at=at: blocks(2, seed=at)) for at in range(3)
    )
    first.area(device).priority = 1
    for model in (first, second, third):
        model.on(device).release()
    resident = {area.key: area.resident for area in house.analyze(device).areas}
    assert resident == {"0": 3 * PAGE, "1": 2 * PAGE, "2": 3 * PAGE}
    with pytest.raises(co.InvalidDeviceError, match="no memory of its own"):
        first.area("cpu")


def test_bad_input_is_refused_and_leaves_nothing(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(1))
    other = co.virtual_devices(2, memory="64MiB")[1]
    with pytest.raises(co.InvalidDeviceError, match=r"Runtime\.load"):
        model.on(other)
    with pytest.raises(co.DeviceNotFoundError):
        model.on("cuda:99")
    for working_memory in ("lots", -1):
        with pytest.raises(co.InvalidValueError):
            model.on(device, working_memory)
    with pytest.raises(co.InvalidTypeError):
        model.on(device, 1.5)
    with pytest.raises(co.InvalidValueError, match="timeout"):
        model.on(device, timeout=-1)
    with pytest.raises(co.InvalidTypeError, match="path of a file"):
        co.Runtime(working_memory=3)  # type: ignore[arg-type]
    replica = model.replica(device)
    with replica.on(), pytest.raises(co.InvalidValueError, match="on its device already"):
        replica.on()
    replica.release()
    with ct.load(house.weights, "blocks 2", lambda: blocks(1)) as alone:
        with pytest.raises(co.InvalidDeviceError, match=r"Runtime\.load"):
            alone.on(device)
    assert house.analyze(device).pinned == 0


def test_waiting_for_a_device_ends_with_its_timeout_token_or_turn(house: co.Runtime) -> None:
    [device] = house.devices
    first, second = (house.load(key, lambda: blocks(5)) for key in ("first", "second"))
    residence = first.on(device)
    with pytest.raises(co.BudgetTimeoutError):
        spawn(lambda: second.on(device, timeout=0.05)).join()
    token = co.CancelToken()
    waiter = spawn(lambda: second.on(device, cancel=token))
    until(lambda: house.vram[device].status().waiting)
    token.cancel("gone")
    with pytest.raises(co.CancelledError, match="gone"):
        waiter.join()
    with pytest.raises(co.DeadlockError, match="which it holds itself"):
        second.on(device)
    waiter = spawn(lambda: second.on(device))
    until(lambda: house.vram[device].status().waiting)
    residence.release()
    waiter.join().release()


def test_an_exception_in_the_block_leaves_the_device_as_after_any_other(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(1))
    with pytest.raises(ZeroDivisionError), model.on(device, working_memory=PAGE):
        raise ZeroDivisionError
    assert house.analyze(device).pinned == 0
    assert house.vram[device].used == 2 * PAGE


def test_hooks_autocast_and_grad_modes_work_on_the_device(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(2))
    plain = blocks(2)
    for mode in (
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ):
        with mode():
            expected = plain(x())
            with model.on(device) as module:
                seen: list[Any] = []
                module.layers[0].register_forward_hook(lambda *_, seen=seen: seen.append(1))
                assert torch.equal(module(x()), expected)
                assert seen == [1]


def test_ctrl_c_ends_a_wait_for_a_device() -> None:
    ended = run_script(
        """
        import _thread, threading, torch, coresident as co
        from coresident.torch import load
        rt = co.Runtime(co.virtual_devices(1, memory="8MiB"))
        make = lambda: torch.nn.Linear(1024, 1280)
        first, second = rt.load("first", make), rt.load("second", make)
        inside = threading.Event()
        def hold():
            with first.on("virtual:0"):
                inside.set()
                threading.Event().wait(20)
        threading.Thread(target=hold, daemon=True).start()
        inside.wait()
        def press():
            while not rt.vram[rt.devices[0]].status().waiting:
                pass
            _thread.interrupt_main()
        threading.Thread(target=press, daemon=True).start()
        try:
            second.on(rt.devices[0])
        except KeyboardInterrupt:
            print("ended", rt.vram[rt.devices[0]].status().waiting)
        """
    )
    assert ended.stdout == "ended []\n", ended.stderr


# What a module does within the block


def test_the_signature_of_forward_is_its_own_within(house: co.Runtime) -> None:
    # transformers and diffusers leave arguments out that forward does not name.
    [device] = house.devices
    with house.load("blocks", lambda: blocks(1)).on(device) as module:
        assert list(inspect.signature(module.forward).parameters) == ["x"]


def test_writable_begins_before_the_device(house: co.Runtime) -> None:
    [device] = house.devices
    replica = house.load("blocks", lambda: blocks(1)).replica(device)
    with replica.on():
        with pytest.raises(co.InvalidValueError, match=r"writable\(\) first"), ct.writable(replica):
            pass
    replica.release()


def test_what_is_written_between_two_stays_on_the_device_is_there_in_the_second(
    house: co.Runtime,
) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(1))
    replica = model.replica(device)
    expected = []
    with torch.no_grad():
        for factor in (2, 4):
            with ct.writable(replica) as module:
                with replica.on():
                    first = module(x())
                # As peft does: not counted by torch.
                module.layers[0].weight.data.mul_(factor)
                with replica.on():
                    second = module(x())
                    module.layers[0].weight.data.mul_(factor)
                third = module(x())
            expected.append((first, second, third))
        plain = blocks(1)
        assert all(torch.equal(first, plain(x())) for first, _, _ in expected)
        for factor, (_, second, third) in zip((2, 4), expected, strict=True):
            for result, times in ((second, factor), (third, factor**2)):
                plain = blocks(1)
                plain.layers[0].weight.data.mul_(times)
                assert torch.equal(result, plain(x()))
    assert replica.release() == []


class Appending(torch.nn.Module):  # type: ignore[misc]
    """Changes what it is given, before it needs memory."""

    def __init__(self, activations: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.activations = activations

    def forward(self, seen: Any) -> Any:
        seen.append(1)
        torch.empty(self.activations, dtype=torch.uint8)
        return torch.tensor(len(seen)) * self.weight


def test_a_call_that_is_made_once_more_finds_its_arguments_as_they_were(house: co.Runtime) -> None:
    [device] = house.devices
    other = house.load("other", lambda: blocks(4))
    other.on(device).release()
    with house.load("appending", lambda: Appending(4 * PAGE)).on(device) as module:
        seen: list[int] = []
        assert module(seen) == 1
        assert seen == [1]
    assert other.area(device).residency().tolist() != [1] * 5, "it was made once more"


def test_a_call_that_has_changed_an_object_is_not_made_once_more(house: co.Runtime) -> None:
    class Cache:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def append(self, value: int) -> None:
            self.seen.append(value)

    [device] = house.devices
    other = house.load("other", lambda: blocks(4))
    other.on(device).release()
    with house.load("appending", lambda: Appending(4 * PAGE)).on(device) as module:
        cache = Cache()
        with pytest.raises(co.DeviceMemoryError, match="ran out of memory"):
            module(cache)
        assert cache.seen == [1]
    assert other.area(device).residency().tolist() == [1] * 5


def test_a_call_goes_before_those_who_wait_for_its_end(house: co.Runtime) -> None:
    [device] = house.devices
    running = house.load("running", lambda: blocks(1, activations=2 * PAGE))
    waiting = house.load("waiting", lambda: blocks(6))
    with running.on(device) as module:
        module(x())
    with running.on(device) as module:
        waiter = spawn(lambda: waiting.on(device).release())
        until(lambda: house.vram[device].status().waiting)
        module(x())
    waiter.join()


def test_releasing_a_replica_that_waits_for_its_device(house: co.Runtime) -> None:
    [device] = house.devices
    held = house.load("held", lambda: blocks(6)).on(device)
    model = house.load("blocks", lambda: blocks(2))
    replica = model.replica(device)
    waiter = spawn(replica.on)
    until(lambda: house.vram[device].status().waiting)
    replica.release()
    held.release()
    with pytest.raises(co.ReleasedError):
        waiter.join()
    first, second = model.replica(device), model.replica(device)
    assert not set(starts(first.module)) & set(starts(replica.module))
    assert not set(starts(first.module)) & set(starts(second.module))
    assert house.analyze(device).pinned == 0


def test_a_forward_that_somebody_has_kept_reserves_nothing_afterwards(house: co.Runtime) -> None:
    [device] = house.devices
    replica = house.load("blocks", lambda: blocks(1, activations=PAGE)).replica(device)
    with replica.on() as module:
        module(x())
        kept = module.forward
    used = house.vram[device].used
    kept(x())
    assert house.vram[device].used == used
    replica.release()


def test_nested_calls_of_two_models_count_once(house: co.Runtime) -> None:
    [device] = house.devices
    inner = house.load("inner", lambda: blocks(1, activations=2 * PAGE))
    with inner.on(device) as part:

        class Outer(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(1))

            def forward(self, x: Any) -> Any:
                return part(x) * self.weight

        with house.load("outer", Outer).on(device) as module:
            for _ in range(2):
                module(x())
            assert house.vram[device].used < 2 * PAGE + PAGE + 3 * PAGE


def test_copies_of_a_module_have_its_own_forward_and_memory(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(1))
    with model.on(device) as module, torch.no_grad():
        copied = copy.deepcopy(module)
        pickled = pickle.loads(pickle.dumps(module))
    house.arenas[device].evict()
    for other in (copied, pickled):
        assert torch.equal(other(x()), blocks(1)(x()))
        assert type(other).forward is Blocks.forward


def test_what_is_compiled_runs_within_and_leaves_no_mode_behind(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(1))
    with model.on(device) as module, torch.no_grad():
        expected = module(x())
        compiled = torch.compile(module, backend="eager")
        assert torch.equal(compiled(x()), expected)
        module.layers[0].compile(backend="eager")
        assert torch.equal(module(x(2)[:1]), blocks(1)(x(2)[:1]))
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_two_threads_may_call_one_module(house: co.Runtime) -> None:
    [device] = house.devices
    with house.load("blocks", lambda: blocks(1)).on(device) as module:

        def call() -> Any:
            with torch.no_grad():
                return [module(x()) for _ in range(20)]

        for thread in [spawn(call) for _ in range(3)]:
            assert all(torch.equal(result, blocks(1)(x())) for result in thread.join())


def test_a_residence_can_be_released_by_another_thread(house: co.Runtime) -> None:
    [device] = house.devices
    first, second = (house.load(key, lambda: blocks(5)) for key in ("first", "second"))
    residence = first.on(device, working_memory=5).hand_over()
    waiter = spawn(lambda: second.on(device, timeout=10).release())
    until(lambda: house.vram[device].status().waiting)
    spawn(residence.release).join()
    waiter.join()
    residence = first.on(device).hand_over()
    with pytest.raises(co.BudgetTimeoutError):
        second.on(device, timeout=0.05)
    residence.release()


def test_parameters_come_back_whatever_was_put_in_their_place(house: co.Runtime) -> None:
    [device] = house.devices
    replica = house.load("blocks", lambda: blocks(2)).replica(device)
    with ct.writable(replica) as module, torch.no_grad():
        with replica.on():
            module.layers[0].weight.data = torch.zeros(3)
            module.layers[0].weight.add_(1)
            module.layers[1].weight.mul_(2)
        house.arenas[device].evict()
        assert module.layers[0].weight.tolist() == [1, 1, 1]
        assert torch.equal(module.layers[1].weight, 2 * blocks(2).layers[1].weight)
    assert torch.equal(replica.module(x()), blocks(2)(x()))
    replica.release()


@dataclasses.dataclass
class Found:
    """What some modules return."""

    weight: Any
    other: Any = None


class Pair(NamedTuple):
    """Others return this."""

    first: Any
    second: Any


def test_whatever_is_returned_has_no_views_of_weights(house: co.Runtime) -> None:
    class Returns(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(4.0))

        def forward(self, given: Any) -> Any:
            given.append(self.weight)
            return Found(self.weight.view(2, 2), Pair(self.weight[1:], 3)), given

    [device] = house.devices
    with house.load("returns", Returns).on(device) as module:
        given: list[Any] = []
        found, same = module(given)
    house.arenas[device].evict()
    assert same is given
    assert given[0].tolist() == [0, 1, 2, 3]
    assert found.weight.tolist() == [[0, 1], [2, 3]]
    assert found.other.first.tolist() == [1, 2, 3]


def test_stray_writes_are_told_where_the_block_ended(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(1))

    def write(module: Any) -> None:
        with torch.no_grad():
            module.layers[0].weight.add_(1)

    def in_a_block() -> None:
        with model.on(device) as module:
            write(module)

    def by_release() -> None:
        replica = model.replica(device)
        write(replica.on().module)
        replica.release()

    def in_host_memory() -> None:
        with model.on("cpu") as module:
            write(module)

    for way in (in_a_block, by_release, in_host_memory):
        with pytest.warns(ct.StrayWriteWarning) as caught:
            way()
        assert [warning.filename for warning in caught] == [__file__]


def test_a_stray_write_is_no_reason_to_wait_for_those_who_wait_for_the_device(
    house: co.Runtime,
) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(4))
    waiting = house.load("waiting", lambda: blocks(5))
    with pytest.warns(ct.StrayWriteWarning):  # noqa: PT031
        with model.on(device) as module, torch.no_grad():
            waiter = spawn(lambda: waiting.on(device).release())
            until(lambda: house.vram[device].status().waiting)
            module.layers[0].weight.zero_()
    waiter.join()
    with model.on(device) as module, torch.no_grad():
        assert torch.equal(module(x()), blocks(4)(x()))


def test_who_uses_a_model_that_another_has_written_to_has_it_whole_again(
    house: co.Runtime,
) -> None:
    [device] = house.devices
    model = house.load("blocks", lambda: blocks(1))
    with model.on(device) as module, torch.no_grad():
        with pytest.warns(ct.StrayWriteWarning, match="meanwhile has seen it"):
            with model.on(device) as other:
                other.layers[0].weight.zero_()
        assert torch.equal(module(x()), blocks(1)(x()))
