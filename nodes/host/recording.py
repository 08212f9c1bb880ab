"""Records post-attention activations along the first steps of the host's own sampling.

Recorded is h = softmax(Q K^T / sqrt(d)) V, heads concatenated, before `to_out`, as PURE (arXiv 2605.25765) has it; a row is
its mean over the spatial axis, one per prompt, latent and step; only the conditional half counts.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import comfy.samplers
import torch

from ...pure_core.activations import Activations
from ...pure_core.errors import PureError
from ...pure_core.moments import MomentsFitter
from ...pure_core.prompts import Prompts
from .layers import Layer, cross_attention_layers, fingerprint, refuse_replaced_attention, unet_of
from .reporting import Progress

# Samplers with one evaluation a step and no noise of their own, so that rows are counted and runs repeat.
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "lms", "ipndm", "ipndm_v", "deis", "res_multistep", "gradient_estimation")


@dataclass(frozen=True)
class Trajectory:
    """How the prompts are sampled; see PURE_CaptureActivations for what each means. Raises PureError on what cannot be run."""

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
            raise PureError(f"sampler_name is {self.sampler_name!r}: samplers that draw noise, adapt their steps or evaluate twice a step cannot be recorded; choose one of {', '.join(offered_samplers())}.")
        if self.scheduler not in offered_schedulers():
            raise PureError(f"scheduler is {self.scheduler!r}, and there are only: {', '.join(offered_schedulers())}.")
        if not 1 <= self.recorded_steps <= self.steps:
            raise PureError(f"recorded_steps is {self.recorded_steps} and steps {self.steps}: record at least 1 and at most all of them.")
        if not self.cfg >= 0:
            raise PureError(f"cfg is {self.cfg}: it has to be a number of at least 0 (1: no unconditional half).")

    def evaluations(self, prompts: int) -> int:
        """U-Net evaluations of single samples that a capture takes; the unconditional half counts too."""
        return prompts * self.latents * self.recorded_steps * (1 if self.cfg == 1 else 2)


def offered_samplers() -> list[str]:
    """Those of SAMPLERS that this host has."""
    return [s for s in SAMPLERS if s in comfy.samplers.SAMPLER_NAMES]


def offered_schedulers() -> list[str]:
    """Those of this host."""
    return list(comfy.samplers.SCHEDULER_NAMES)


def capture(model, clip, prompts: Prompts, trajectory: Trajectory) -> Activations:
    """The moments of every cross-attention layer over prompts x latents x recorded steps; the MODEL is left as it was."""
    refuse_replaced_attention(model)
    layers = cross_attention_layers(model)
    conditioning = {text: encode(clip, text) for text in dict.fromkeys([*(p for _, p in prompts.pairs), ""])}
    latents = start_noise(model, trajectory)
    jobs = sorted(((text, j) for _, text in prompts.pairs for j in range(trajectory.latents)),
                  key=lambda job: conditioning[job[0]][0].shape[1])  # one length of conditioning per batch; stable otherwise
    recorder = Recorder(layers)
    batches = list(batched(jobs, conditioning, trajectory.batch_size))
    progress = Progress(model, len(batches) * trajectory.recorded_steps)
    with recorder.attached(unet_of(model)):
        for batch in batches:
            recorder.begin(len(batch))
            sample(model, conditioning, latents, batch, trajectory, lambda step, denoised, x, total: (recorder.collect(), progress.step(denoised)))
    moments = recorder.results(len(jobs) * trajectory.recorded_steps)
    provenance = {**trajectory.__dict__, "role": prompts.role, "concepts": list(prompts.concepts), "prompts": [p for _, p in prompts.pairs],
                  "context_width": layers[0].context, "fingerprint": fingerprint(model, layers), "model": type(model.model).__name__}
    provenance.pop("batch_size")  # changes nothing of the result
    return Activations(moments, {layer.name: layer.heads for layer in layers}, provenance)


def encode(clip, text: str) -> tuple[torch.Tensor, dict]:
    """The host's conditioning of one prompt: embedding (1, tokens, width) and the rest of its entry (pooled output, ...)."""
    entries = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(entries) != 1:
        raise PureError("This CLIP is scheduled over time (a hook LoRA with keyframes): connect it from before the hooks.")
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


def start_noise(model, trajectory: Trajectory) -> torch.Tensor:
    """(latents, channels, height / 8, width / 8) noise; the j-th depends on (seed, j) alone, and j = 0 is KSampler's own."""
    latent_format = model.get_model_object("latent_format")
    scale = getattr(latent_format, "spacial_downscale_ratio", 8)
    generator = torch.Generator("cpu").manual_seed(trajectory.seed)
    shape = (1, latent_format.latent_channels, trajectory.height // scale, trajectory.width // scale)
    return torch.cat([torch.randn(shape, generator=generator) for _ in range(trajectory.latents)])


def sample(model, conditioning: dict, latents: torch.Tensor, batch: list[tuple[str, int]], trajectory: Trajectory, callback) -> None:
    """Runs the host's sampler over the recorded steps for one batch of (prompt, latent) pairs."""
    rows = [conditioning[text] for text, _ in batch]
    extra = {k: torch.cat([row[1][k] for row in rows]) if torch.is_tensor(v) and v.shape[:1] == (1,) else v for k, v in rows[0][1].items()}
    positive = [[torch.cat([row[0] for row in rows]), extra]]
    negative = [[conditioning[""][0], dict(conditioning[""][1])]]
    noise = latents[[j for _, j in batch]]
    sampler = comfy.samplers.KSampler(model, steps=trajectory.steps, device=model.load_device, sampler=trajectory.sampler_name,
                                      scheduler=trajectory.scheduler, denoise=1.0, model_options=model.model_options)
    sampler.sample(noise, positive, negative, cfg=trajectory.cfg, latent_image=torch.zeros_like(noise), start_step=0,
                   last_step=trajectory.recorded_steps, force_full_denoise=False, callback=callback, disable_pbar=True, seed=trajectory.seed)


class Recorder:
    """Pools rows on the device as the layers run, and moves them to the CPU once a step."""

    def __init__(self, layers: list[Layer]):
        self.layers = layers
        self.fitters = {layer.name: MomentsFitter(layer.width) for layer in layers}
        self.counts = dict.fromkeys(self.fitters, 0)
        self._pooled: dict[str, torch.Tensor] = {}
        self._halves: list[int] = []
        self._size = 0

    @contextlib.contextmanager
    def attached(self, unet: torch.nn.Module) -> Iterator[None]:
        """Hooks on the U-Net's cross-attention for the length of the block; all of them are gone after it, however it ends."""
        with contextlib.ExitStack() as stack:
            stack.callback(unet.register_forward_pre_hook(self._see_options, with_kwargs=True).remove)
            for layer in self.layers:
                target = unet.get_submodule(f"{layer.name}.to_out")
                stack.callback(target.register_forward_pre_hook(lambda _, args, name=layer.name: self._pool(name, args[0])).remove)
            yield

    def begin(self, size: int) -> None:
        """A batch of `size` (prompt, latent) pairs comes."""
        self._size, self._pooled = size, {}

    def _see_options(self, _, args, kwargs) -> None:
        """Before the U-Net runs: which parts of its batch are conditional (0) and unconditional (1)."""
        self._halves = list(kwargs.get("transformer_options", {}).get("cond_or_uncond", []))

    def _pool(self, name: str, h: torch.Tensor) -> None:
        """Keeps the conditional half of h (halves x size, positions, d), averaged over the positions in float32."""
        if h.shape[0] != len(self._halves) * self._size:
            raise PureError(f"Layer {name} ran on a batch of {h.shape[0]}, not {len(self._halves)} x {self._size}: a node upstream splits or tiles the sampling; connect the MODEL from before it.")
        for half, rows in zip(self._halves, h.split(self._size)):
            if half == 0:
                if name in self._pooled:
                    raise PureError(f"Layer {name} ran more than once in a step: a node upstream repeats or tiles the sampling; connect the MODEL from before it.")
                self._pooled[name] = rows.mean(1, dtype=torch.float32)

    def collect(self) -> None:
        """After a step: one transfer of everything pooled in it."""
        names = list(self._pooled)
        if names:
            rows = torch.cat([self._pooled[n] for n in names], 1).cpu()
            for name, part in zip(names, rows.split([self._pooled[n].shape[1] for n in names], 1)):
                self.fitters[name].add(part)
                self.counts[name] += part.shape[0]
        self._pooled = {}

    def results(self, expected: int) -> dict:
        """The moments; raises PureError unless every layer saw exactly the expected rows."""
        short = [n for n, count in self.counts.items() if count != expected]
        if short:
            raise PureError(f"Layer {short[0]} gave {self.counts[short[0]]} rows and not {expected}: something upstream bypasses the attention layers (TorchCompile, caching or tiling); connect the MODEL from before it.")
        return {name: fitter.result() for name, fitter in self.fitters.items()}
