"""The jobs of several users: each leases a device, and borrows idle ones for parts of its work."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
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

# Records what a device does for a job: ``work(device, stage=...)``.
Work = Callable[..., AbstractContextManager[None]]


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

    Attributes:
        timeline: Of everything that it has drawn.
    """

    def __init__(
        self, runtime: co.Runtime, pipeline: SharedPipeline, steps: int, *, split: bool = False
    ) -> None:
        if steps < 1:
            raise co.InvalidValueError(f"steps is {steps}: a job has at least 1")
        self.timeline = Timeline(runtime.devices)
        self._numbers = itertools.count(1)
        self._runtime = runtime
        self._pipeline = pipeline
        self._steps = steps
        self._split = split

    def draw_all(self, jobs: list[Job], cancel: co.CancelToken | None = None) -> list[Drawing]:
        """Draws everything, as much at once as there are devices; waits.

        Args:
            jobs: What to draw.
            cancel: A token that ends all of them. It is raised as well when one of them fails.

        Raises:
            BaseException: what the first job that failed raised, or ``KeyboardInterrupt``. The
                other jobs are cancelled then, and have ended.
        """
        cancel = co.CancelToken() if cancel is None else cancel
        count = len(self._runtime.devices)
        # A job more than there is room for, so that a device that comes free is taken at once.
        at_once = -(-count // 2) if self._split else count + 1
        with JobProgress(len(jobs)) as progress, ThreadPoolExecutor(at_once, "job") as threads:
            futures = []
            try:
                for job in jobs:
                    futures.append(threads.submit(self.draw, job, progress, cancel))
                    cancel.wait(ARRIVAL)
                ended, _ = concurrent.futures.wait(futures, return_when="FIRST_EXCEPTION")
                for future in ended:
                    future.result()
            except BaseException:
                cancel.cancel("another job has failed")
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def draw(self, job: Job, progress: JobProgress, cancel: co.CancelToken) -> Drawing:
        """Draws one image on the first device that comes free; waits for it."""
        with self._runtime.pool.lease(cancel=cancel) as lease, torch.inference_mode():
            home, number = lease.device, next(self._numbers)
            work = partial(self._work, home=home, job=job, number=number)
            with progress.job(str(home), job.user, job.prompt, self._steps) as bar:
                texts = self._encode(job, home, work, cancel)
                latents = self._denoise(job, home, texts, bar, work, cancel)
                image = self._decode(home, latents, work, cancel)
            return Drawing(job, image, home)

    def _encode(
        self, job: Job, home: co.Device, work: Work, cancel: co.CancelToken
    ) -> tuple[Tensor, Tensor]:
        """The prompt and the empty prompt as the UNet takes them, encoded where it is idle."""

        def encode(device: co.Device) -> tuple[Tensor, Tensor]:
            pipe = self._pipeline.on(device)
            resident = self._pipeline.resident("text_encoder", device, cancel)
            with resident, work(device, stage=TEXT_ENCODER):
                texts = pipe.encode_prompt(job.prompt, pipe.device, 1, True)
                guided, unguided = (text.to(home.torch_name) for text in texts)
                return guided, unguided

        with self._runtime.pool.borrow(affinity=TEXT_ENCODER) as spare:
            device = spare.device if spare else home
            return self._runtime.workers.run(device, encode, device, cancel=cancel)

    def _denoise(
        self,
        job: Job,
        home: co.Device,
        texts: tuple[Tensor, Tensor],
        bar: Bar,
        work: Work,
        cancel: co.CancelToken,
    ) -> Tensor:
        """Latents ``(1, channels, height, width)`` of the image."""
        guided, unguided = texts
        with self._devices_for_guidance(home) as devices, ExitStack() as resident:
            for device in devices:
                resident.enter_context(self._pipeline.resident("unet", device, cancel))
            bar.show_device(" + ".join(map(str, devices)))
            models = {device: self._pipeline.module("unet", device) for device in devices}
            watch = partial(work, stage=UNET)
            unet = GuidedUNet(home, models, self._runtime.workers, watch, cancel)

            def after_step(_pipe: Any, _step: int, _time: Any, tensors: Any) -> Any:
                cancel.raise_if_cancelled()
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

    def _decode(
        self, home: co.Device, latents: Tensor, work: Work, cancel: co.CancelToken
    ) -> Image:
        pipe = self._pipeline.on(home)
        with self._pipeline.resident("vae", home, cancel), work(home, stage=VAE):
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
    def _work(
        self, device: co.Device, *, home: co.Device, job: Job, number: int, stage: str
    ) -> Iterator[None]:
        """Records what a device does for a job, until it has done it."""
        with self.timeline.record(
            device,
            user=job.user,
            job=job.subject,
            stage=stage,
            borrowed=device != home,
            number=number,
        ):
            yield
            if device.torch_name != "cpu":
                torch.accelerator.synchronize(device.torch_name)
