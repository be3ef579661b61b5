"""The jobs of several users: a queue, and a handler that draws one image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image as Images
from PIL.Image import Image
from torch import Tensor

import coresident as co
from coresident.demo.guidance import GuidedUNet
from coresident.demo.pipeline import MODULES, SharedPipeline
from coresident.display import Timeline, watch

TEXT_ENCODER, UNET, VAE = "text encoder", "unet", "vae"
GUIDANCE = 3.0


@dataclass(frozen=True)
class Job:
    """One image that a user wants.

    Attributes:
        user: Who.
        prompt: Of what.
        seed: What makes it this one among all of them.
        cancelled_after: After how many steps the user changes his mind, if he does.
    """

    user: str
    prompt: str
    seed: int
    cancelled_after: int | None = None

    @property
    def subject(self) -> str:
        """The prompt's last word."""
        return self.prompt.rpartition(" ")[2]


@dataclass(frozen=True)
class Drawing:
    """What came of a job.

    Attributes:
        job: The job.
        image: The image; the last preview of a job that was cancelled.
        device: Where it was drawn.
        cancelled: Whether the user has cancelled it.
        waited: Seconds from when it was submitted to when it began.
        finished: Seconds from when the first job was submitted to its end.
        seconds: How long it has had its device.
    """

    job: Job
    image: Image
    device: co.Device
    cancelled: bool = False
    waited: float = 0.0
    finished: float = 0.0
    seconds: float = 0.0


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
        self._runtime = runtime
        self._pipeline = pipeline
        self._steps = steps
        self._split = split
        self._drawn = 0

    def draw_all(self, jobs: list[Job], cancel: co.CancelToken | None = None) -> list[Drawing]:
        """Draws everything, as much at once as there are devices; waits.

        The first job comes alone. The others come as soon as it has begun, while all other devices
        are idle still.

        Args:
            jobs: What to draw.
            cancel: A token that ends all of them.

        Raises:
            BaseException: what the first job that failed raised, or ``KeyboardInterrupt``. The
                other jobs are cancelled then, and have ended.
        """
        devices = self._runtime.devices
        # A device for the other half of each job, if there are two halves.
        served = devices[: -(-len(devices) // 2)] if self._split else devices
        queue = co.JobQueue(devices=devices)
        server = self._runtime.serve(self._draw, queue, devices=served)
        with queue, server, _bars(queue), queue.subscribe() as events:
            try:
                return self._follow(queue, events, jobs, cancel)
            except BaseException:
                queue.cancel(everything=True, reason="another job has failed")
                raise

    def _follow(
        self,
        queue: co.JobQueue,
        events: co.Events,
        jobs: list[Job],
        cancel: co.CancelToken | None,
    ) -> list[Drawing]:
        """Submits the jobs, does what their users do, and collects the drawings."""
        submitted = [self._submit(queue, jobs[0])]
        left, previews = len(jobs), dict[int, Image]()
        while left:
            event = events.next(cancel=cancel)
            if event is None:
                raise co.ClosedError("somebody has closed the queue of the studio")
            if len(submitted) == 1 and event.kind not in ("queued", "claimed", "started"):
                submitted += [self._submit(queue, job) for job in jobs[1:]]
            if event.kind == "failed":
                event.job.result()
            left -= event.kind in ("finished", "cancelled")
            wish = jobs[event.id - submitted[0].id]
            if event.preview is not None:
                previews[event.id] = event.preview
            if wish.cancelled_after is not None and (event.step or 0) >= wish.cancelled_after:
                event.job.cancel(f"{wish.user} has changed his mind")
        began = submitted[0].submitted
        drawings = [
            _drawing(job, wish, previews.get(job.id), began)
            for job, wish in zip(submitted, jobs, strict=True)
        ]
        for job in submitted:
            if job.cancelled():
                self.timeline.mark_cancelled(self._drawn + job.id)
        self._drawn += len(jobs)
        return drawings

    def _submit(self, queue: co.JobQueue, job: Job) -> co.Job:
        return queue.submit(
            {"prompt": job.prompt, "seed": job.seed},
            user=job.user,
            needs=[self._pipeline.key(part) for part in MODULES],
        )

    def _draw(self, job: co.ServedJob) -> Image:
        """The handler: draws one image, on the job's device and idle ones."""
        wish = Job(job.user, **job.payload)
        with torch.inference_mode():
            job.stage(TEXT_ENCODER)
            texts = job.run_borrowed(self._encode, job, wish, to="job")
            job.stage(UNET)
            latents = self._denoise(job, wish, *texts)
            job.stage(VAE)
            return self._decode(job, wish, latents)

    def _encode(self, job: co.ServedJob, wish: Job) -> tuple[Tensor, Tensor]:
        """The prompt and the empty prompt as the UNet takes them, on the current device."""
        device = co.current_device() or job.device
        pipe = self._pipeline.on(device)
        resident = self._pipeline.resident("text_encoder", device, job.token)
        with resident, self._work(device, job, wish, TEXT_ENCODER):
            guided, unguided = pipe.encode_prompt(wish.prompt, pipe.device, 1, True)
            return guided, unguided

    def _denoise(self, job: co.ServedJob, wish: Job, guided: Tensor, unguided: Tensor) -> Tensor:
        """Latents ``(1, channels, height, width)`` of the image."""
        with self._devices_for_guidance(job) as devices, ExitStack() as resident:
            for device in devices:
                resident.enter_context(self._pipeline.resident("unet", device, job.token))
            models = {device: self._pipeline.module("unet", device) for device in devices}
            work = partial(self._work, job=job, wish=wish, stage=UNET)
            unet = GuidedUNet(job.device, models, self._runtime.workers, work, job.token)
            return self._pipeline.on(job.device, unet=unet)(
                prompt_embeds=guided,
                negative_prompt_embeds=unguided,
                num_inference_steps=self._steps,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(wish.seed),
                output_type="latent",
                callback_on_step_end=job.on_step_with(_preview),
            ).images

    def _decode(self, job: co.ServedJob, wish: Job, latents: Tensor) -> Image:
        home = job.device
        pipe = self._pipeline.on(home)
        resident = self._pipeline.resident("vae", home, job.token)
        with resident, self._work(home, job, wish, VAE):
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            image: Image = pipe.image_processor.postprocess(decoded)[0]
            return image

    @contextmanager
    def _devices_for_guidance(self, job: co.ServedJob) -> Iterator[list[co.Device]]:
        """The job's own device, and with it an idle one if the halves are to run at once."""
        with ExitStack() as stack:
            spare = stack.enter_context(self._runtime.pool.borrow()) if self._split else None
            yield [job.device, spare.device] if spare else [job.device]

    @contextmanager
    def _work(self, device: co.Device, job: co.ServedJob, wish: Job, stage: str) -> Iterator[None]:
        """Records what a device does for a job, until it has done it."""
        with self.timeline.record(
            device,
            user=job.user,
            job=wish.subject,
            stage=stage,
            borrowed=device != job.device,
            number=self._drawn + job.id,
        ):
            yield
            if device.torch_name != "cpu":
                torch.accelerator.synchronize(device.torch_name)


def _bars(queue: co.JobQueue) -> Any:
    return watch(queue, describe=lambda job: str(job.payload["prompt"]))


def _preview(tensors: dict[str, Any]) -> Image:
    """The latents of a step as a small grey image."""
    latents = tensors["latents"][0].float().mean(0)
    low, high = latents.min(), latents.max()
    grey = (latents - low) / (high - low).clamp(min=1e-6) * 255
    return Images.fromarray(grey.to("cpu", torch.uint8).numpy())


def _drawing(job: co.Job, wish: Job, preview: Image | None, began: float) -> Drawing:
    device = job.device
    if device is None:
        raise co.CancelledError(f"job {job.id} was cancelled before it began")
    cancelled = job.cancelled()
    image = preview or Images.new("L", (8, 8)) if cancelled else job.result()
    started, finished = job.started or job.submitted, job.finished or job.submitted
    return Drawing(
        wish,
        image,
        device,
        cancelled,
        waited=started - job.submitted,
        finished=finished - began,
        seconds=finished - started,
    )
