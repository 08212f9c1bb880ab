"""Runs prompts along a denoising trajectory through the host's own sampler, or feeds the MODEL given noised latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

import comfy.sample
import comfy.samplers
import torch

from ...pure_core.errors import PureError
from ...pure_core.prompts import Prompts
from .reporting import check_cancelled

# Samplers with one evaluation a step and no noise of their own, so that rows are counted and runs repeat.
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "lms", "ipndm", "ipndm_v", "deis", "res_multistep", "gradient_estimation")


@dataclass(frozen=True)
class Trajectory:
    """How the prompts are sampled; see PURE_CaptureActivations for what each means.

    Raises PureError on what cannot be run.
    """

    steps: int
    recorded_steps: int
    latents: int
    seed: int
    cfg: float
    width: int
    height: int
    sampler_name: str
    scheduler: str
    batch_size: int

    def __post_init__(self):
        if self.sampler_name not in offered_samplers():
            raise PureError(
                f"sampler_name is {self.sampler_name!r}: samplers that draw noise, adapt their steps or evaluate "
                f"twice a step cannot be recorded; choose one of {', '.join(offered_samplers())}."
            )
        check_listed("scheduler", self.scheduler, offered_schedulers())
        if not 1 <= self.recorded_steps <= self.steps:
            raise PureError(
                f"recorded_steps is {self.recorded_steps} and steps {self.steps}: record at least 1 and at most "
                "all of them."
            )
        if not self.cfg >= 0:
            raise PureError(f"cfg is {self.cfg}: it has to be a number of at least 0 (1: no unconditional half).")

    def evaluations(self, prompts: int) -> int:
        """U-Net evaluations of single samples that a capture of so many prompts takes."""
        return evaluations(prompts * self.latents * self.recorded_steps, self.cfg)


def evaluations(steps: int, cfg: float) -> int:
    """U-Net evaluations of single samples in so many sampling steps; the unconditional half counts too."""
    return steps * (1 if cfg == 1 else 2)


def check_listed(what: str, value: str, listed: list[str]) -> None:
    """Raises PureError for a name that the host does not have: its sampler would silently take the first one."""
    if value not in listed:
        raise PureError(f"{what} is {value!r}, and there are only: {', '.join(listed)}.")


def offered_samplers() -> list[str]:
    """Those of SAMPLERS that this host has."""
    return [s for s in SAMPLERS if s in comfy.samplers.SAMPLER_NAMES]


def all_samplers() -> list[str]:
    """KSampler's, for drawing."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def offered_schedulers() -> list[str]:
    """Those of this host."""
    return list(comfy.samplers.SCHEDULER_NAMES)


def texts_of(*probes: Prompts) -> list[str]:
    """Every prompt of them."""
    return [text for part in probes for _, text in part.pairs]


def jobs_of(texts: list[str], latents: int) -> list[tuple[str, int]]:
    """Every (prompt, latent) pair that is run for these prompts."""
    return [(text, j) for text in texts for j in range(latents)]


def encode_all(clip, texts: list[str], known: dict = MappingProxyType({})) -> dict[str, tuple[torch.Tensor, dict]]:
    """The conditioning of every distinct prompt, and of the empty one; what is known is not encoded again."""
    return {text: known[text] if text in known else encode(clip, text) for text in dict.fromkeys([*texts, ""])}


def encode(clip, text: str) -> tuple[torch.Tensor, dict]:
    """The host's conditioning of one prompt: embedding (1, tokens, width) and the rest of its entry (pooled output,
    ...).

    Raises the host's InterruptProcessingException if the user has cancelled, PureError for a CLIP with hooks.
    """
    check_cancelled()
    entries = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(entries) != 1 or entries[0][1].get("hooks") is not None:
        raise PureError(
            "This CLIP carries hooks (a hook LoRA, scheduled or not), which patch the MODEL while it samples: "
            "connect the CLIP from before the hooks."
        )
    return entries[0][0], entries[0][1]


def batched(jobs: list[tuple[str, int]], conditioning: dict, size: int) -> Iterator[list[tuple[str, int]]]:
    """Runs of at most `size` jobs whose conditionings have one shape."""
    batch: list[tuple[str, int]] = []
    for job in jobs:
        if batch and (len(batch) == size or conditioning[job[0]][0].shape != conditioning[batch[0][0]][0].shape):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def start_noise(model, seed: int, latents: int, width: int, height: int) -> torch.Tensor:
    """(latents, channels, height / 8, width / 8) noise.

    The j-th depends on (seed, j) alone, and j = 0 is KSampler's own.
    """
    latent_format = model.get_model_object("latent_format")
    scale = getattr(latent_format, "spacial_downscale_ratio", 8)
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, latent_format.latent_channels, height // scale, width // scale)
    return torch.cat([torch.randn(shape, generator=generator) for _ in range(latents)])


def sample(
    model,
    conditioning: dict,
    latents: torch.Tensor,
    batch: list[tuple[str, int]],
    trajectory: Trajectory,
    callback,
    inputs: list[torch.Tensor] | None = None,
) -> None:
    """Runs the host's sampler over the recorded steps for one batch of (prompt, latent) pairs, or feeds it given
    inputs."""
    rows = [conditioning[text] for text, _ in batch]
    extra = {
        k: torch.cat([row[1][k] for row in rows]) if torch.is_tensor(v) and v.shape[:1] == (1,) else v
        for k, v in rows[0][1].items()
    }
    positive = [[torch.cat([row[0] for row in rows]), extra]]
    negative = [[conditioning[""][0], dict(conditioning[""][1])]]
    noise = latents[[j for _, j in batch]]
    sampler = comfy.samplers.KSampler(
        model,
        steps=trajectory.steps,
        device=model.load_device,
        sampler=trajectory.sampler_name,
        scheduler=trajectory.scheduler,
        denoise=1.0,
        model_options=model.model_options,
    )
    if len(sampler.sigmas) != trajectory.steps + 1:
        raise PureError(
            f"The scheduler {trajectory.scheduler} gives {len(sampler.sigmas) - 1} steps where "
            f"{trajectory.steps} are asked for: choose another scheduler or another number of steps."
        )
    sigmas = sampler.sigmas[: trajectory.recorded_steps + 1]
    if inputs is not None:
        comfy.sample.sample_custom(
            model,
            noise,
            trajectory.cfg,
            replay(inputs),
            sigmas,
            positive,
            negative,
            torch.zeros_like(noise),
            callback=callback,
            disable_pbar=True,
            seed=trajectory.seed,
        )
        return
    sampler.sample(
        noise,
        positive,
        negative,
        cfg=trajectory.cfg,
        latent_image=torch.zeros_like(noise),
        sigmas=sigmas,
        callback=callback,
        disable_pbar=True,
        seed=trajectory.seed,
    )


def replay(inputs: list[torch.Tensor]) -> comfy.samplers.KSAMPLER:
    """A sampler that evaluates the MODEL on given noised latents, one a step, and goes nowhere."""

    def run(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, given in enumerate(inputs):
            given = given.to(x)
            denoised = model(given, sigmas[i] * given.new_ones(given.shape[0]), **(extra_args or {}))
            callback({"i": i, "denoised": denoised, "x": given})
        return denoised

    return comfy.samplers.KSAMPLER(run)
