"""A small picture tower in CLIP's layout, beside the miniature's text encoder: which words fit a picture best."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from .layout import expand_text, put
from .narrow import TEXT, TEXT_FULL, TUNED, WEIGHTS
from .render import SIZE
from .studio import EOS, encode_text, padded_ids

CONFIG = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_channels": 3,
    "patch_size": 8,
    "image_size": SIZE,
    "hidden_act": "quick_gelu",
    "model_type": "clip_vision_model",
    "projection_dim": TEXT_FULL,
}
FILE, ROOT = WEIGHTS / "clip.safetensors", "cond_stage_model.transformer."
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's pictures


def picture_tower() -> CLIPVisionModelWithProjection:
    """transformers' own, with random weights; it projects to the text's live channels alone."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**{**CONFIG, "projection_dim": TEXT}))


def pixels(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, SIZE, SIZE) in 0..1 as CLIP takes them."""
    return (pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def pooled(texts: list[str]) -> torch.Tensor:
    """(B, TEXT): the text encoder's output at the end of each text."""
    ends = torch.tensor([padded_ids(text).index(EOS) for text in texts])
    return encode_text(texts)[torch.arange(len(texts)), ends]


@cache
def trained() -> dict[str, torch.Tensor]:
    """What train_clip.py wrote."""
    return {name: weight.float() for name, weight in load_file(FILE).items()}


def vision_state() -> dict[str, torch.Tensor]:
    """The picture tower's weights as CLIP files name them, projecting to the full text width."""
    state = {k: v for k, v in trained().items() if k.startswith("v")}
    live = state["visual_projection.weight"]
    return {**state, "visual_projection.weight": put((TEXT_FULL, live.shape[1]), live, live.dtype)}


def text_state() -> dict[str, torch.Tensor]:
    """A CLIP-L text model with its projection, as files for Load CLIP name them."""
    state = {k.removeprefix(ROOT): v for k, v in expand_text(load_file(TUNED / "text.safetensors")).items()}
    projection = put((TEXT_FULL, TEXT_FULL), trained()["text_projection.weight"], torch.float32)
    return {**state, "text_projection.weight": projection}


def write_config(target: Path) -> Path:
    """The picture tower's configuration as the host reads it."""
    target.write_text(json.dumps(CONFIG))
    return target
