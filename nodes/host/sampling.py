"""Runs prompts along a denoising trajectory through the host's own sampler, or feeds the MODEL given noised latents."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import torch

from ...pure_core.activations import CaptureSettings
from ...pure_core.basis import check_offered
from ...pure_core.errors import PureError
from .reporting import check_cancelled
from .sites import AttentionSite, family_name, is_unet

Conditioning = tuple[torch.Tensor, dict[str, Any]]  # the host's entry of one prompt: embedding and the rest
# Samplers with one evaluation a step and no noise of their own, so that rows are counted and runs repeat.
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "lms", "ipndm", "ipndm_v", "deis", "res_multistep", "gradient_estimation")
# Pixels per latent pixel, by the host's name of the latent format, where it is not 8 and the host does not say it.
DOWNSCALE = {"LTXV": 32, "Wan22": 16, "Flux2": 16, "HunyuanImage21": 32, "HunyuanVideo15": 16, "ChromaRadiance": 1}


class Job(NamedTuple):
    """One prompt on one latent. label: what its rows belong to, of the caller's choosing."""

    text: str
    latent: int
    label: Hashable = None


@dataclass(frozen=True)
class Trajectory(CaptureSettings):
    """How prompts are sampled, and how many at once; see PURE_CaptureActivations. PureError on what cannot be run."""

    batch_size: int = 4

    def __post_init__(self) -> None:
        if self.sampler_name not in offered_samplers():
            raise PureError(
                f"sampler_name {self.sampler_name!r} draws noise, adapts its steps or evaluates twice a step, so it "
                f"cannot be recorded. Choose one of {', '.join(offered_samplers())}."
            )
        check_offered("scheduler", self.scheduler, offered_schedulers())
        if not 1 <= self.recorded_steps <= self.steps:
            raise PureError(f"recorded_steps must be between 1 and steps ({self.steps}); it is {self.recorded_steps}.")
        if not self.cfg >= 0:
            raise PureError(f"cfg must be 0 or more (1: no unconditional half); it is {self.cfg}.")

    @property
    def settings(self) -> CaptureSettings:
        """All but the batch size, which changes nothing of the result."""
        return CaptureSettings(**{f.name: getattr(self, f.name) for f in fields(CaptureSettings)})

    def evaluations(self, prompts: int) -> int:
        """Evaluations of the MODEL on single samples that a capture of so many prompts takes."""
        return guided(prompts * self.seeds * self.recorded_steps, self.cfg)


def guided(evaluations: int, cfg: float) -> int:
    """The same with guidance: the unconditional half counts too."""
    return evaluations * (1 if cfg == 1 else 2)


def offered_samplers() -> list[str]:
    """Those of SAMPLERS that this host has."""
    return [s for s in SAMPLERS if s in comfy.samplers.SAMPLER_NAMES]


def all_samplers() -> list[str]:
    """KSampler's, for drawing."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def offered_schedulers() -> list[str]:
    """Those of this host."""
    return list(comfy.samplers.SCHEDULER_NAMES)


def usual_scheduler(sites: list[AttentionSite]) -> str:
    """The spacing of noise levels that a MODEL is usually sampled with."""
    return "normal" if is_unet(sites) else "simple"


def jobs_of(texts: Mapping[str, Hashable] | Sequence[tuple[str, Hashable]], latents: int) -> list[Job]:
    """Every (prompt, latent) pair that is run for these prompts, which come with labels."""
    pairs = texts.items() if isinstance(texts, Mapping) else texts
    return [Job(text, j, label) for text, label in pairs for j in range(latents)]


def check_parts(**parts: Any) -> None:
    """Raises PureError, naming the input, for a part that a loader did not find in its file."""
    for name, part in parts.items():
        if part is None:
            raise PureError(
                f"There is no {name.upper()}: the file it was loaded from holds none. Load it with a loader of its own "
                f"and connect it to {name}."
            )


def encode(clip: Any, text: str) -> Conditioning:
    """The host's conditioning of one prompt: embedding (1, tokens, width) and the rest of its entry (pooled, ...).

    Raises the host's InterruptProcessingException if the user has cancelled, PureError for a CLIP with hooks and for a
    prompt that gives no finite numbers.
    """
    check_cancelled()
    entries = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(entries) != 1 or entries[0][1].get("hooks") is not None:
        raise PureError(
            "This CLIP carries hooks (a hook LoRA, scheduled or not), which patch the MODEL while it samples. "
            "Connect the CLIP from before the hooks."
        )
    if not torch.isfinite(entries[0][0]).all():
        raise PureError(
            f"The CLIP gives no numbers for {text!r}. Check the weights in its parentheses, as in (word:1.2)."
        )
    return entries[0][0], entries[0][1]


def encode_empty(model: Any, clip: Any, sites: list[AttentionSite]) -> Conditioning:
    """The conditioning of the empty prompt; raises PureError where the CLIP is missing or of another family."""
    check_parts(clip=clip)
    empty = encode(clip, "")
    if is_unet(sites) and empty[0].shape[-1] != sites[0].context:
        raise PureError(
            f"This CLIP gives text of width {empty[0].shape[-1]} and this MODEL ({family_name(model)}) takes "
            f"{sites[0].context}. Connect the CLIP of the same checkpoint."
        )
    return empty


def encode_all(
    clip: Any, texts: Sequence[str], known: Mapping[str, Conditioning] = MappingProxyType({})
) -> dict[str, Conditioning]:
    """The conditioning of every distinct prompt, and of the empty one; what is known is not encoded again."""
    return {text: known[text] if text in known else encode(clip, text) for text in dict.fromkeys([*texts, ""])}


def batch_key(conditioning: Conditioning, text: str) -> Hashable:
    """Equal for prompts that can run as one batch: all tensors of one shape, with the batch as first dimension."""
    tensors = {name: value for name, value in conditioning[1].items() if torch.is_tensor(value)}
    alone = text if any(value.shape[:1] != (1,) for value in tensors.values()) else None
    return (tuple(conditioning[0].shape), tuple((name, tuple(value.shape)) for name, value in tensors.items()), alone)


def batched(jobs: list[Job], conditioning: Mapping[str, Conditioning], size: int) -> Iterator[list[Job]]:
    """Runs of at most `size` jobs that fit into one batch."""
    batch: list[Job] = []
    for job in jobs:
        key = batch_key(conditioning[job.text], job.text)
        if batch and (len(batch) == size or key != batch_key(conditioning[batch[0].text], batch[0].text)):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def start_noise(model: Any, seed: int, latents: int, width: int, height: int) -> torch.Tensor:
    """(latents, channels, ...) noise for pictures of this size (videos: one frame).

    The j-th depends on (seed, j) alone, and j = 0 is KSampler's own.
    """
    latent_format = model.get_model_object("latent_format")
    scale = getattr(latent_format, "spacial_downscale_ratio", None)
    scale = scale or DOWNSCALE.get(type(latent_format).__name__, 8)
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, height // scale, width // scale))
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.cat([torch.randn(empty.shape, generator=generator) for _ in range(latents)])


def sample(
    model: Any,
    conditioning: Mapping[str, Conditioning],
    latents: torch.Tensor,
    batch: list[Job],
    trajectory: Trajectory,
    callback: Callable[..., None],
    inputs: list[torch.Tensor] | None = None,
) -> None:
    """Runs the host's sampler over the recorded steps for one batch of jobs, or feeds it given inputs."""
    rows = [conditioning[job.text] for job in batch]
    extra = {
        k: torch.cat([row[1][k] for row in rows]) if torch.is_tensor(v) and v.shape[:1] == (1,) else v
        for k, v in rows[0][1].items()
    }
    positive = [[torch.cat([row[0] for row in rows]), extra]]
    negative = [[conditioning[""][0], dict(conditioning[""][1])]]
    noise = latents[[job.latent for job in batch]]
    sampler = comfy.samplers.KSampler(
        model,
        steps=trajectory.steps,
        device=model.load_device,
        sampler=trajectory.sampler_name,
        scheduler=trajectory.scheduler,
        denoise=1.0,
        model_options=model.model_options,
    )
    check_noise_levels(sampler.sigmas, trajectory)
    sigmas = sampler.sigmas[: trajectory.recorded_steps + 1]
    common = {"callback": callback, "disable_pbar": True, "seed": trajectory.seed}
    try:
        if inputs is None:
            empty = torch.zeros_like(noise)
            sampler.sample(noise, positive, negative, cfg=trajectory.cfg, latent_image=empty, sigmas=sigmas, **common)
        else:
            follow, empty = replay(inputs), torch.zeros_like(noise)
            comfy.sample.sample_custom(
                model, noise, trajectory.cfg, follow, sigmas, positive, negative, empty, **common
            )
    except (RuntimeError, KeyError) as error:
        if isinstance(error, KeyError) or "shapes cannot be multiplied" in str(error):
            raise PureError(
                f"This CLIP does not fit this MODEL ({family_name(model)}): {error}. Connect the CLIP of the same "
                "checkpoint."
            ) from error
        raise


def check_noise_levels(sigmas: torch.Tensor, trajectory: Trajectory) -> None:
    """Raises PureError where a scheduler gives other steps than were asked for, or none that can be run."""
    if len(sigmas) != trajectory.steps + 1:
        raise PureError(
            f"The scheduler {trajectory.scheduler} gives {len(sigmas) - 1} steps where {trajectory.steps} are asked "
            "for. Choose another scheduler or another number of steps."
        )
    if not torch.isfinite(sigmas).all():
        raise PureError(
            f"The scheduler {trajectory.scheduler} cannot make {trajectory.steps} steps. Choose more steps or another "
            "scheduler."
        )


def replay(inputs: list[torch.Tensor]) -> Any:
    """A sampler that evaluates the MODEL on given noised latents, one a step, and goes nowhere."""

    def run(
        model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> torch.Tensor:
        for i, given in enumerate(inputs):
            given = given.to(x)
            denoised = model(given, sigmas[i] * given.new_ones(given.shape[0]), **(extra_args or {}))
            callback({"i": i, "denoised": denoised, "x": given})
        last: torch.Tensor = denoised
        return last

    return comfy.samplers.KSAMPLER(run)
