"""Draws the same pictures with two MODELs."""

from __future__ import annotations

import contextlib
from typing import Any

import comfy.sample
import torch

from .reporting import Progress, check_cancelled
from .sampling import Conditioning, check_parts, encode, encode_empty, start_noise
from .sites import NoSites, attention_sites


def draw_pairs(
    original: Any,
    edited: Any,
    clip: Any,
    vae: Any,
    asked: list[tuple[str, int]],
    negative: str,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    width: int,
    height: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, height, width, 3) pictures of (prompt, seed) pairs by both MODELs.

    What KSampler and VAEDecode give for each prompt with its seed. Raises PureError before anything is drawn where
    CLIP or VAE are missing or of another family.
    """
    check_parts(clip=clip, vae=vae)
    with contextlib.suppress(NoSites):  # a MODEL that cannot be edited can still be drawn with
        encode_empty(original, clip, attention_sites(original))
    conditioning = {text: encode(clip, text) for text in dict.fromkeys([*(text for text, _ in asked), negative])}
    progress = Progress(original, 2 * len(asked) * steps)

    def latent(model: Any, text: str, seed: int) -> torch.Tensor:
        pair = (conditioning[text], conditioning[negative])
        return draw_latent(model, *pair, seed, steps, cfg, sampler_name, scheduler, width, height, progress)

    latents = [[latent(model, *pair) for pair in asked] for model in (original, edited)]
    # After all drawing: on a small GPU the VAE drives the diffusion model out.
    before, after = (torch.cat([decode(vae, part) for part in own]) for own in latents)
    return before, after


def decode(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """(n, height, width, 3), the picture of a latent (of a video the first frame); answers a cancel."""
    check_cancelled()
    pictures: torch.Tensor = vae.decode(latent)
    return pictures if pictures.dim() == 4 else pictures[:, 0]


def draw_latent(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    width: int,
    height: int,
    progress: Progress,
) -> torch.Tensor:
    """The latent that KSampler gives for an empty latent of this size."""
    noise = start_noise(model, seed, 1, width, height)
    latent: torch.Tensor = comfy.sample.sample(
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
    return latent
