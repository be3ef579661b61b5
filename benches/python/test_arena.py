"""Weights that come to a device, stay, and leave, next to what is done without pages."""

from __future__ import annotations

import copy
import ctypes
from itertools import islice

import coresident as co
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
diffusers = pytest.importorskip("diffusers", reason="comes with the test extra")

TENSORS = 40


@pytest.fixture(scope="module")
def block():
    """A block of a transformer, resident: 40 tensors of 256 KiB."""
    [device] = co.virtual_devices(1, memory="64MiB")
    arena = co.Arena(device, co.Budget(device))
    state = {f"t{at}": torch.ones(1 << 16) for at in range(TENSORS)}
    area = arena.area(co.WeightStore().share("block", state, copy=True))
    block = area.block(area.keys())
    area.fault(block).release()
    return area, block


@pytest.mark.benchmark(group=f"a resident block of {TENSORS} tensors, per tensor")
class TestBlock:
    def test_ours_fault_and_unpin(self, timed, block):
        area, pages = block

        def loop(calls):
            for _ in islice(calls, 0, None, TENSORS):
                area.fault(pages).release()

        timed(loop)

    def test_peer_three_foreign_calls_each(self, timed):
        call = ctypes.CDLL(None).abs
        call.argtypes, call.restype = [ctypes.c_int], ctypes.c_int

        def loop(calls):
            for _ in calls:
                call(1)
                call(1)
                call(1)

        timed(loop)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A UNet of 686 tensors as Stable Diffusion's is built."""
    torch.set_num_threads(1)
    widths = (32, 64, 128, 128)
    unet = diffusers.UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=64)
    folder = tmp_path_factory.mktemp("unet")
    unet.save_pretrained(folder)
    return folder


@pytest.mark.benchmark(group="a model on a device where it is resident, 686 tensors")
class TestResident:
    def test_ours_on_of_a_replica(self, timed_call, folder):
        with co.Runtime(co.virtual_devices(1, memory="1GiB")) as runtime:
            replica = runtime.load("unet", folder).replica(runtime.devices[0])
            timed_call(lambda: replica.on().release())
            replica.release()

    def test_ours_on_of_a_model(self, timed_call, folder):
        with co.Runtime(co.virtual_devices(1, memory="1GiB")) as runtime:
            model = runtime.load("unet", folder)
            timed_call(lambda: model.on(runtime.devices[0]).release())

    def test_peer_to(self, timed_call, folder):
        # Everything is there: it looks at each tensor, and moves none.
        module = diffusers.UNet2DConditionModel.from_pretrained(folder)
        timed_call(lambda: module.to("cpu", torch.float32))


@pytest.mark.benchmark(group="from one model to another that does not fit beside it, 686 tensors")
class TestSwitch:
    def test_ours_on(self, timed_call, folder):
        size = (folder / "diffusion_pytorch_model.safetensors").stat().st_size
        with co.Runtime(co.virtual_devices(1, memory=size + (8 << 20))) as runtime:
            [device] = runtime.devices
            replicas = [runtime.load(key, folder).replica(device) for key in ("one", "another")]

            def switch():
                for replica in replicas:
                    replica.on().release()

            timed_call(switch)
            for replica in replicas:
                replica.release()

    def test_peer_copies(self, timed_call, folder):
        # What moving to a device and dropping the copy comes to, in host memory.
        module = diffusers.UNet2DConditionModel.from_pretrained(folder)
        modules = [module, copy.deepcopy(module)]

        def switch():
            for module in modules:
                state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
                module.load_state_dict(state, assign=True)

        timed_call(switch)
