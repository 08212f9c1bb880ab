"""Texts and pictures as vectors of one CLIP, by the host's own CLIP and CLIP_VISION."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...pure_core.errors import PureError
from .reporting import Progress, check_cancelled

AT_ONCE = 8  # pictures that the tower sees together
# Width of the vectors -> the file whose picture tower belongs to a text model of that width.
TOWERS = {
    768: "model.safetensors of openai/clip-vit-large-patch14 (ViT-L/14)",
    1024: "clip_vision_h.safetensors (ViT-H/14)",
    1280: "clip_vision_g.safetensors (ViT-bigG/14)",
}


def text_vectors(clip: Any, texts: Sequence[str]) -> torch.Tensor:
    """(n, width) float32, on the CPU: CLIP's projected vector of each text.

    The projection is applied here: for Stable Diffusion 1 the host leaves it out. Raises PureError for a CLIP that has
    none, or that joins several text models.
    """
    vectors = []
    for text in texts:
        check_cancelled()
        pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled="unprojected")[1]
        project = None if pooled is None else projection_of(clip, pooled.shape[-1])
        if project is None:
            raise PureError(
                "The texts of this clip cannot be compared with pictures. Connect the CLIP of an SDXL checkpoint, or "
                f"load {TOWERS[768]} by Load CLIP."
            )
        vectors.append(project(pooled.float()).float().cpu())
    return torch.cat(vectors)


def projection_of(clip: Any, width: int) -> Any | None:
    """The module that takes a text model's pooled output to what is compared with pictures, or None."""
    own = (m for name, m in clip.cond_stage_model.named_modules() if name.endswith("text_projection"))
    return next((m for m in own if width in TOWERS and tuple(m.weight.shape) == (width, width)), None)


def picture_vectors(clip_vision: Any, pictures: torch.Tensor, width: int, progress: Progress) -> torch.Tensor:
    """(n, width) float32, on the CPU: CLIP's projected vector of each picture (n, h, w, 3) in 0..1, its middle square.

    Raises PureError for a tower whose vectors are not of this width, and the host's InterruptProcessingException if the
    user has cancelled.
    """
    vectors = []
    for part in pictures.split(AT_ONCE):
        check_cancelled()
        seen = clip_vision.encode_image(part)["image_embeds"]
        if seen.dim() != 2 or seen.shape[-1] != width:
            raise PureError(
                f"This clip_vision does not belong to this clip: it gives vectors of width {seen.shape[-1]}, the text "
                f"{width}. Load {TOWERS[width]} by Load CLIP Vision."
            )
        if not torch.isfinite(seen).all():
            raise PureError("Some of these pictures are not numbers, so nothing can be seen in them. Draw them again.")
        vectors.append(seen.float().cpu())
        progress.step(count=len(part))
    return torch.cat(vectors)
