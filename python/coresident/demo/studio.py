"""The jobs of several users: each leases a device, and borrows idle ones for parts of its work."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

import coresident as co
from coresident.demo.guidance import GuidedUNet
from coresident.demo.pipeline import SharedPipeline
from coresident.display import JobProgress, Timeline
from coresident.display.progress import Bar

TEXT_ENCODER, UNET, VAE = "text encoder", "unet", "vae"
GUIDANCE = 3.0
# Seconds from one job to the next: users do not press the button at one instant.
ARRIVAL = 0.02


@dataclass(frozen=True)
class Job:
    """One image that a user wants."""

    user: str
    prompt: str
    seed: int

    @property
    def subject(self) -> str:
        """The prompt's last word."""
        return self.prompt.rpartition(" ")[2]


@dataclass(frozen=True)
class Drawing:
    """An image, and how it came about."""

    job: Job
    image: Image
    device: co.Device


class Studio:
    """One runtime and one pipeline on all of its devices, for any number of jobs at once.

    Args:
        runtime: The devices and their workers.
        pipeline: The modules on them.
        steps: Denoising steps of each job.
        split: Whether the halves of guidance run on two devices when a second one is idle.
    """

    def __init__(
        self, runtime: co.Runtime, pipeline: SharedPipeline, steps: int, *, split: bool = False
    ) -> None:
        self.timeline = Timeline(runtime.devices)
        self.cancel = co.CancelToken()
        self._runtime = runtime
        self._pipeline = pipeline
        self._steps = steps
        self._split = split

    def draw_all(self, jobs: list[Job]) -> list[Drawing]:
        """Draws everything, as much at once as there are devices; waits.

        Raises:
            BaseException: what the first job that failed raised, or ``KeyboardInterrupt``. The
                other jobs are cancelled then, and have ended.
        """
        count = len(self._runtime.devices)
        # A job more than there is room for, so that a device that comes free is taken at once.
        at_once = -(-count // 2) if self._split else count + 1
        with JobProgress(len(jobs)) as progress, ThreadPoolExecutor(at_once, "job") as threads:
            futures = []
            try:
                for job in jobs:
                    futures.append(threads.submit(self.draw, job, progress))
                    self.cancel.wait(ARRIVAL)
                ended, _ = concurrent.futures.wait(futures, return_when="FIRST_EXCEPTION")
                for future in ended:
                    future.result()
            except BaseException:
                self.cancel.cancel("the demo ends")
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def draw(self, job: Job, progress: JobProgress, device: co.Device | None = None) -> Drawing:
        """Draws one image on a device, or on the first that comes free; waits for it."""
        with self._runtime.pool.lease(device, cancel=self.cancel) as lease, torch.inference_mode():
            home = lease.device
            with progress.job(str(home), job.user, job.prompt, self._steps) as bar:
                texts = self._encode(job, home)
                latents = self._denoise(job, home, texts, bar)
                image = self._decode(job, home, latents)
            return Drawing(job, image, home)

    def _encode(self, job: Job, home: co.Device) -> tuple[Tensor, Tensor]:
        """The prompt and the empty prompt as the UNet takes them, encoded where it is idle."""
        with self._runtime.pool.borrow(affinity=TEXT_ENCODER) as spare:
            device = spare.device if spare else home
            return self._runtime.workers.run(
                device, self._encode_on, device, job, home, cancel=self.cancel
            )

    def _encode_on(self, device: co.Device, job: Job, home: co.Device) -> tuple[Tensor, Tensor]:
        pipe = self._pipeline.on(device)
        with self._work(device, job, TEXT_ENCODER, home):
            texts = pipe.encode_prompt(job.prompt, pipe.device, 1, True)
            guided, unguided = (text.to(home.torch_name) for text in texts)
            return guided, unguided

    def _denoise(self, job: Job, home: co.Device, texts: tuple[Tensor, Tensor], bar: Bar) -> Tensor:
        """Latents ``(1, channels, height, width)`` of the image."""
        guided, unguided = texts
        with self._devices_for_guidance(home) as devices:
            bar.show_device(" + ".join(map(str, devices)))
            models = {device: self._pipeline.module("unet", device) for device in devices}
            watch = partial(self._work, job=job, stage=UNET, home=home)
            unet = GuidedUNet(home, models, self._runtime.workers, watch, self.cancel)

            def after_step(_pipe: Any, _step: int, _time: Any, tensors: Any) -> Any:
                self.cancel.raise_if_cancelled()
                bar.advance()
                return tensors

            return self._pipeline.on(home, unet=unet)(
                prompt_embeds=guided,
                negative_prompt_embeds=unguided,
                num_inference_steps=self._steps,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(job.seed),
                output_type="latent",
                callback_on_step_end=after_step,
            ).images

    def _decode(self, job: Job, home: co.Device, latents: Tensor) -> Image:
        pipe = self._pipeline.on(home)
        with self._work(home, job, VAE, home):
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            image: Image = pipe.image_processor.postprocess(decoded)[0]
            return image

    @contextmanager
    def _devices_for_guidance(self, home: co.Device) -> Iterator[list[co.Device]]:
        """The job's own device, and with it an idle one if the halves are to run at once."""
        with ExitStack() as stack:
            spare = stack.enter_context(self._runtime.pool.borrow()) if self._split else None
            yield [home, spare.device] if spare else [home]

    @contextmanager
    def _work(self, device: co.Device, job: Job, stage: str, home: co.Device) -> Iterator[None]:
        """Records what a device does, until it has done it."""
        with self.timeline.record(
            device, user=job.user, job=job.subject, stage=stage, borrowed=device != home
        ):
            yield
            if device.torch_name != "cpu":
                torch.accelerator.synchronize(device.torch_name)
