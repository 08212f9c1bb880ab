"""Feeds two MODELs the same noised latents and compares what their cross-attention renders.

And draws the same pictures with both.
"""

from __future__ import annotations

import comfy.sample
import torch

from ...pure_core import leakage
from ...pure_core.activations import layer_difference
from ...pure_core.errors import PureError
from ...pure_core.moments import RowKeeper
from ...pure_core.prompts import Prompts
from .layers import Layer
from .recording import Recorder, record, recordable_layers
from .reporting import Progress, check_cancelled
from .sampling import Trajectory, encode, encode_all, jobs_of, start_noise, texts_of


def common_layers(original, edited) -> list[Layer]:
    """The cross-attention layers of both MODELs; raises PureError where they differ."""
    layers, others = recordable_layers(original), recordable_layers(edited)
    shapes = [{layer.name: (layer.width, layer.heads, layer.context) for layer in part} for part in (layers, others)]
    difference = layer_difference(*shapes, "the original MODEL", "the edited one")
    if difference:
        raise PureError(f"These are not one MODEL before and after an edit: {difference}.")
    return layers


def evaluations(concept: Prompts, retain: Prompts, trajectory: Trajectory) -> int:
    """U-Net evaluations that a measure takes: the edited MODEL is not asked where the concept shows."""
    _, measuring = leakage.split_probes(concept)
    return trajectory.evaluations(len(concept.pairs) + len(measuring.pairs) + 2 * len(retain.pairs))


def measure_leakage(
    original, edited, clip, concept: Prompts, retain: Prompts, trajectory: Trajectory
) -> dict[str, leakage.LayerLeakage]:
    """Per layer what is left of the concept in what it adds to the picture (after `to_out`), and how far that moved for
    retained prompts; no basis is asked."""
    layers = common_layers(original, edited)
    for probes, wanted in ((concept, "forget"), (retain, "retain")):
        if probes.role != wanted:
            raise PureError(
                f"The {'concept' if wanted == 'forget' else 'retain'} probes come from a node with the role "
                f"{probes.role}: swap the two, or set its role to {wanted}."
            )
    finding, measuring = leakage.split_probes(concept)
    conditioning = encode_all(clip, texts_of(concept, retain))
    jobs = {
        role: jobs_of(texts_of(probes), trajectory.latents)
        for role, probes in (("find", finding), ("concept", measuring), ("retain", retain))
    }
    fed: dict[str, list] = {role: [] for role in ("concept", "retain")}
    progress = Progress(
        original, (sum(map(len, jobs.values())) + sum(len(jobs[role]) for role in fed)) * trajectory.recorded_steps
    )

    def look(model, part, **feed):
        return record(
            model, conditioning, part, trajectory, Recorder(layers, RowKeeper, after_output=True), progress, **feed
        )

    before = {role: look(original, part, keep=fed.get(role)) for role, part in jobs.items()}
    after = {role: look(edited, jobs[role], inputs=fed[role]) for role in fed}
    return leakage.measure(before["find"], before["concept"], after["concept"], before["retain"], after["retain"])


def draw_pairs(
    original,
    edited,
    clip,
    vae,
    prompts: list[str],
    negative: str,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    width: int,
    height: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, height, width, 3) pictures of the prompts by both MODELs.

    What KSampler and VAEDecode give for each prompt with this seed.
    """
    conditioning = {text: encode(clip, text) for text in dict.fromkeys([*prompts, negative])}
    progress = Progress(original, 2 * len(prompts) * steps)
    latents = [
        [
            draw_latent(
                model,
                conditioning[text],
                conditioning[negative],
                seed,
                steps,
                cfg,
                sampler_name,
                scheduler,
                width,
                height,
                progress,
            )
            for text in prompts
        ]
        for model in (original, edited)
    ]
    return tuple(
        torch.cat([decode(vae, latent) for latent in part]) for part in latents
    )  # after all drawing: on a small GPU the VAE drives the U-Net out


def decode(vae, latent: torch.Tensor) -> torch.Tensor:
    """The picture of a latent; raises the host's InterruptProcessingException if the user has cancelled."""
    check_cancelled()
    return vae.decode(latent)


def draw_latent(
    model, positive, negative, seed, steps, cfg, sampler_name, scheduler, width, height, progress
) -> torch.Tensor:
    """The latent that KSampler gives for an empty latent of this size."""
    noise = start_noise(model, seed, 1, width, height)
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler_name,
        scheduler,
        [[positive[0], dict(positive[1])]],
        [[negative[0], dict(negative[1])]],
        torch.zeros_like(noise),
        callback=lambda step, denoised, x, total: progress.step(denoised),
        disable_pbar=True,
        seed=seed,
    )
