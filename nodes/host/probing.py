"""Feeds two MODELs the same noised latents and compares what their cross-attention renders; and draws the same pictures with both."""
from __future__ import annotations

import comfy.sample
import torch

from ...pure_core import leakage
from ...pure_core.activations import layer_difference
from ...pure_core.errors import PureError
from ...pure_core.moments import RowKeeper
from ...pure_core.prompts import Prompts
from .layers import Layer
from .recording import record, recordable_layers
from .reporting import Progress
from .sampling import Trajectory, encode, encode_all, jobs_of, start_noise


def common_layers(original, edited) -> list[Layer]:
    """The cross-attention layers of both MODELs; raises PureError where they differ."""
    layers, others = recordable_layers(original), recordable_layers(edited)
    shapes = [{layer.name: (layer.width, layer.heads, layer.context) for layer in part} for part in (layers, others)]
    difference = layer_difference(*shapes, "the original MODEL", "the edited one")
    if difference:
        raise PureError(f"These are not one MODEL before and after an edit: {difference}.")
    return layers


def measure_leakage(original, edited, clip, concept: Prompts, retain: Prompts, trajectory: Trajectory) -> dict[str, leakage.LayerLeakage]:
    """Per layer what is left of the concept, and how far the retained activations moved; no basis is asked."""
    layers = common_layers(original, edited)
    finding, measuring = leakage.split_probes(concept)
    conditioning = encode_all(clip, concept, retain)
    jobs = {role: jobs_of(probes, trajectory.latents) for role, probes in (("find", finding), ("concept", measuring), ("retain", retain))}
    batches = {role: -(-len(part) // trajectory.batch_size) for role, part in jobs.items()}
    progress = Progress(original, (sum(batches.values()) + batches["concept"] + batches["retain"]) * trajectory.recorded_steps)
    fed: dict[str, list] = {role: [] for role in ("concept", "retain")}
    before = {role: record(original, layers, conditioning, part, trajectory, RowKeeper, progress, keep=fed.get(role)) for role, part in jobs.items()}
    after = {role: record(edited, layers, conditioning, jobs[role], trajectory, RowKeeper, progress, inputs=fed[role]) for role in fed}
    return leakage.measure(before["find"], before["concept"], after["concept"], before["retain"], after["retain"])


def draw_pairs(original, edited, clip, vae, prompts: list[str], negative: str, seed: int, steps: int, cfg: float,
               sampler_name: str, scheduler: str, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, height, width, 3) pictures of the prompts by both MODELs: what KSampler and VAEDecode give for each prompt with this seed."""
    conditioning = {text: encode(clip, text) for text in dict.fromkeys([*prompts, negative])}
    progress = Progress(original, 2 * len(prompts) * steps)
    return tuple(torch.cat([vae.decode(draw_latent(model, conditioning[text], conditioning[negative], seed, steps, cfg, sampler_name, scheduler, width, height, progress))
                            for text in prompts]) for model in (original, edited))


def draw_latent(model, positive, negative, seed, steps, cfg, sampler_name, scheduler, width, height, progress) -> torch.Tensor:
    """The latent that KSampler gives for an empty latent of this size."""
    noise = start_noise(model, seed, 1, width, height)
    return comfy.sample.sample(model, noise, steps, cfg, sampler_name, scheduler, [[positive[0], dict(positive[1])]], [[negative[0], dict(negative[1])]], torch.zeros_like(noise),
                               callback=lambda step, denoised, x, total: progress.step(denoised), disable_pbar=True, seed=seed)
