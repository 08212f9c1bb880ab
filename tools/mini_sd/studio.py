"""Draws pictures with the narrow model, and tells with the judge what they show."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import make_prompts
from .narrow import (
    FULL,
    TEXT,
    TEXT_TOKENS,
    TUNED,
    WEIGHTS,
    WIDTH,
    AttributeJudge,
    Judge,
    TextEncoder,
    UNet,
    decoder,
    encoder,
    load_unet_state,
    load_weights,
)
from .world import BACKGROUNDS, CHARACTERS, COLORS, EYES, MARKS, SHAPES, STYLES, TOPPERS, WORLD, Creature

HERE = Path(__file__).parent
BOS, EOS = 49406, 49407
CHANNELS, SIDE = 4, 8
ATTRIBUTES = {
    "kind": ("shapes", "creature"),
    "topper": tuple(TOPPERS),
    "mark": tuple(MARKS),
    "eyes": tuple(EYES),
    "shape": tuple(SHAPES),
    "color": tuple(COLORS),
}


@cache
def word_ids() -> dict[str, list[int]]:
    """CLIP BPE ids of every word that a caption can hold.

    Word by word they concatenate to the tokenizer's own output.
    """
    return json.loads((HERE / "tokens.json").read_text())


@cache
def prompts() -> dict:
    """The disjoint `choose` and `test` prompts with their seeds; see README.md."""
    return json.loads((HERE / "prompts.json").read_text()) if WORLD == 1 else make_prompts.build()


def token_ids(text: str) -> list[int]:
    """CLIP token ids of a caption, with begin and end."""
    words = [i for word in text.replace(",", " , ").split() for i in word_ids()[word]]
    return [BOS, *words[: TEXT_TOKENS - 2], EOS]


def padded_ids(text: str) -> list[int]:
    """token_ids filled up to the text encoder's 77 with ends, as CLIP does it."""
    return (token_ids(text) + [EOS] * TEXT_TOKENS)[:TEXT_TOKENS]


@cache
def text_encoder() -> tuple[TextEncoder, dict[int, int]]:
    """The narrow text encoder and its dense index of the token ids it knows."""
    state = load_file(TUNED / "text.safetensors")
    ids = state.pop("token_ids").tolist()
    return load_weights(TextEncoder(len(ids)), state), {t: i for i, t in enumerate(ids)}


@torch.inference_mode()
def encode_text(texts: list[str]) -> torch.Tensor:
    """(B, 77, TEXT) float32 embeddings of captions."""
    model, dense = text_encoder()
    return model(torch.tensor([[dense[i] for i in padded_ids(t)] for t in texts]))


def leading(weight: torch.Tensor) -> torch.Tensor:
    """The block of a laid-out U-Net's key, value (FULL, text width) or output (FULL, FULL) weight that is not zero,
    which is the narrow U-Net's weight."""
    if weight.shape[0] != FULL:
        raise ValueError(f"{tuple(weight.shape)} is not a cross-attention weight of the laid-out U-Net.")
    return weight[:WIDTH, : WIDTH if weight.shape[1] == FULL else TEXT].contiguous()


def unet(weights: dict[str, torch.Tensor] | None = None) -> UNet:
    """The narrow U-Net, with some of its weights (keys without `diffusion_model.`) replaced."""
    state = {**load_unet_state(), **(weights or {})}
    return load_weights(UNet(), state).to(memory_format=torch.channels_last)  # a fifth faster


@cache
def vae_decoder() -> torch.nn.Module:
    return load_weights(decoder(), load_file(WEIGHTS / "vae_decoder.safetensors"))


@cache
def vae_encoder() -> torch.nn.Module:
    return load_weights(encoder(), load_file(WEIGHTS / "vae_encoder.safetensors"))


@cache
def judge() -> Judge:
    return load_weights(Judge(len(CHARACTERS), len(STYLES), len(BACKGROUNDS)), load_file(WEIGHTS / "judge.safetensors"))


@cache
def attribute_judge() -> AttributeJudge:
    return load_weights(
        AttributeJudge({name: len(values) for name, values in ATTRIBUTES.items()}),
        load_file(WEIGHTS / "attributes.safetensors"),
    )


def noise(seeds: list[int]) -> torch.Tensor:
    """(B, 4, 8, 8) start noise, the host's own for each seed at batch size one."""
    return torch.cat([torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds])


def sigmas() -> torch.Tensor:
    """Noise levels of Stable Diffusion 1's thousand training steps, (1000,) float32."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return ((1 - kept) / kept).sqrt().float()


def draw(
    net: UNet,
    texts: list[str],
    seeds: list[int],
    steps: int = 15,
    cfg: float = 4.0,
    batch: int = 64,
    negative: str = "",
) -> torch.Tensor:
    """(B, 3, 64, 64) pictures in 0..1: what the host draws with sampler `euler`, scheduler `normal` and each seed at
    batch size one."""
    distinct = sorted({*texts, negative})
    embedded = dict(zip(distinct, encode_text(distinct), strict=True))
    return draw_embedded(net, torch.stack([embedded[t] for t in texts]), embedded[negative], seeds, steps, cfg, batch)


@torch.inference_mode()
def draw_embedded(
    net: UNet,
    contexts: torch.Tensor,
    free: torch.Tensor,
    seeds: list[int],
    steps: int,
    cfg: float = 4.0,
    batch: int = 64,
) -> torch.Tensor:
    """The same from embeddings: contexts (B, 77, TEXT) of the prompts and (77, TEXT) of the negative prompt."""
    logs = sigmas().log()
    times = torch.linspace(999, 0, steps)
    low = times.floor().long()
    levels = torch.lerp(logs[low], logs[times.ceil().long()], times - low).exp().tolist()
    pictures = []
    for start in range(0, len(contexts), batch):
        part = contexts[start : start + batch]
        context = torch.cat([part, free.expand_as(part)])
        x = noise(seeds[start : start + batch]) * (1 + levels[0] ** 2) ** 0.5
        for now, then in zip(levels, [*levels[1:], 0.0], strict=True):
            step = (
                (torch.tensor(now).log() - logs).abs().argmin().expand(2 * len(part))
            )  # the host asks for whole training steps
            scaled = x / (now**2 + 1) ** 0.5
            cond, uncond = net(torch.cat([scaled, scaled]), step, context).chunk(2)
            x = x + (uncond + cfg * (cond - uncond)) * (then - now)
        pictures.append(vae_decoder()(x).clamp(0, 1))
    return torch.cat(pictures)


@torch.inference_mode()
def look(pictures: torch.Tensor) -> list[dict[str, str | None]]:
    """What the judge sees in (B, 3, 64, 64) pictures in 0..1: character (None: no named one), style and background.

    It knows the first world's characters; in another world a character is what has all its attributes.
    """
    seen = {k: v.argmax(1).tolist() for k, v in judge()(pictures).items()}
    names = {"character": [*CHARACTERS, None], "style": list(STYLES), "background": list(BACKGROUNDS)}
    out = [{k: names[k][seen[k][i]] for k in names} for i in range(len(pictures))]
    return out if WORLD == 1 else [{**o, "character": who(e)} for o, e in zip(out, examine(pictures), strict=True)]


def who(attributes: dict[str, str]) -> str | None:
    """The character that has all these attributes."""
    creature = Creature(*(attributes[f.name] for f in fields(Creature)))
    named = (name for name, looks in CHARACTERS.items() if looks == creature)
    return next(named, None) if attributes["kind"] == "creature" else None


@torch.inference_mode()
def examine(pictures: torch.Tensor) -> list[dict[str, str]]:
    """What the other judge sees in (B, 3, 64, 64) pictures in 0..1: the value of each of ATTRIBUTES.

    Parts only mean something of a creature.
    """
    seen = {k: v.argmax(1).tolist() for k, v in attribute_judge()(pictures).items()}
    return [{k: values[seen[k][i]] for k, values in ATTRIBUTES.items()} for i in range(len(pictures))]
