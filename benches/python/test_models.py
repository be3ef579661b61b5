"""Models from a folder and replicas of them, next to what their libraries do."""

from __future__ import annotations

import copy

import coresident as co
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
diffusers = pytest.importorskip("diffusers", reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A UNet of 686 tensors as Stable Diffusion's is built."""
    torch.set_num_threads(1)
    widths = (32, 64, 128, 128)
    unet = diffusers.UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=64)
    assert len(unet.state_dict()) == 686
    folder = tmp_path_factory.mktemp("unet")
    unet.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ct.load(co.WeightStore(), "unet", folder)


@pytest.mark.benchmark(group="a folder to its first module")
class TestFirst:
    def test_ours_load_and_replica(self, timed_call, folder):
        def run():
            with ct.load(co.WeightStore(), "unet", folder) as model:
                model.replica("cpu").release()

        timed_call(run)

    def test_peer_from_pretrained(self, timed_call, folder):
        timed_call(lambda: diffusers.UNet2DConditionModel.from_pretrained(folder))


@pytest.mark.benchmark(group="the next module, 686 tensors")
class TestNext:
    def test_ours_replica(self, timed_call, model):
        # None is given back: each is new.
        timed_call(lambda: model.replica("cpu"))

    def test_ours_replica_used_again(self, timed_call, model):
        model.replica("cpu").release()
        timed_call(lambda: model.replica("cpu").release())

    def test_peer_load_file_skeleton_assign(self, timed_call, folder):
        from safetensors.torch import load_file

        file = folder / "diffusion_pytorch_model.safetensors"
        with torch.device("meta"):
            skeleton = diffusers.UNet2DConditionModel.from_config(
                diffusers.UNet2DConditionModel.load_config(folder)
            )

        def run():
            module = copy.deepcopy(skeleton)
            module.load_state_dict(load_file(file), assign=True)

        timed_call(run)

    def test_peer_deepcopy(self, timed_call, folder):
        module = diffusers.UNet2DConditionModel.from_pretrained(folder)
        timed_call(lambda: copy.deepcopy(module))


@pytest.mark.benchmark(group="a tensor while another thread may load")
class TestSwitches:
    def test_ours_linear_installed(self, timed):
        installation = ct.install()

        def loop(calls):
            for _ in calls:
                torch.nn.Linear(2, 2)

        timed(loop)
        installation.uninstall()

    def test_peer_linear(self, timed):
        ct.install().uninstall()

        def loop(calls):
            for _ in calls:
                torch.nn.Linear(2, 2)

        timed(loop)
        ct.install()
