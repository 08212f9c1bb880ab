"""A narrow text-to-image model whose weights are the leading block of a Stable Diffusion 1's.

Of every width of SD 1 only the first channels (whole normalisation groups, whole attention heads) are kept; the rest
are exactly zero. Layer normalisation still counts the zeros, so laying the narrow weights into zero tensors of SD 1's
shapes gives a checkpoint that computes the same function in any program that loads an SD 1 checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

from .world import WORLD

WEIGHTS = Path(__file__).parent / "weights"
TUNED = WEIGHTS if WORLD == 1 else WEIGHTS / f"world{WORLD}"  # of text encoder and U-Net
WIDTH, FULL = 80, 320  # U-Net channels kept, of SD 1's; two of its eight heads
HEAD = 40
TIME, TIME_FULL = 320, 1280
TEXT, TEXT_FULL, TEXT_HEAD, TEXT_MLP = 128, 768, 64, 384  # two of CLIP-L's twelve heads
TEXT_LAYERS, TEXT_TOKENS = 2, 77
AE = 32  # channels kept, of the tiny autoencoder's 64


class NarrowLayerNorm(nn.Module):
    def __init__(self, kept: int, full: int):
        super().__init__()
        self.rest, self.full = full - kept, full
        self.weight = nn.Parameter(torch.ones(kept))
        self.bias = nn.Parameter(torch.zeros(kept))

    def forward(self, x):
        y = F.layer_norm(F.pad(x, (0, self.rest)), (self.full,))[..., : x.shape[-1]]
        return y * self.weight + self.bias


def attend(q, k, v, head: int, causal: bool = False):
    q, k, v = (t.view(t.shape[0], t.shape[1], -1, head).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


class ResBlock(nn.Module):
    def __init__(self, parts: int = 1):  # parts: how many widths are concatenated in the input
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(WIDTH // 10, WIDTH * parts, eps=1e-5), nn.SiLU(), nn.Conv2d(WIDTH * parts, WIDTH, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(TIME, WIDTH))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(WIDTH // 10, WIDTH, eps=1e-5), nn.SiLU(), nn.Identity(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if parts == 1 else nn.Conv2d(WIDTH * parts, WIDTH, 1)
        nn.init.zeros_(self.out_layers[3].weight)

    def forward(self, x, emb, context):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, context: int):
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Identity())

    def forward(self, x, context=None):
        context = x if context is None else context
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), HEAD))


class GEGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(WIDTH, 2 * 4 * WIDTH)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(GEGLU(), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(WIDTH), Attention(TEXT), FeedForward()
        self.norm1, self.norm2, self.norm3 = (NarrowLayerNorm(WIDTH, FULL) for _ in range(3))

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(WIDTH // 10, WIDTH, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x, emb, context):
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        y = self.transformer_blocks[0](y, context)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def forward(self, x, emb, context):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x, emb, context):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ConvIn(nn.Conv2d):
    def forward(self, x, emb, context):
        return super().forward(x)


class UNet(nn.Module):
    """Two resolutions of 320 channels; keys are those of an SD 1 `model.diffusion_model.`."""

    def __init__(self):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(FULL, TIME), nn.SiLU(), nn.Linear(TIME, TIME))

        def blocks(*rows):
            return nn.ModuleList(nn.ModuleList(r) for r in rows)

        self.input_blocks = blocks(
            [ConvIn(4, WIDTH, 3, padding=1)],
            [ResBlock(), SpatialTransformer()],
            [Downsample()],
            [ResBlock(), SpatialTransformer()],
        )
        self.middle_block = nn.ModuleList([ResBlock(), SpatialTransformer(), ResBlock()])
        self.output_blocks = blocks(
            [ResBlock(2), SpatialTransformer()],
            [ResBlock(2), SpatialTransformer(), Upsample()],
            [ResBlock(2), SpatialTransformer()],
            [ResBlock(2), SpatialTransformer()],
        )
        self.out = nn.Sequential(
            nn.GroupNorm(WIDTH // 10, WIDTH, eps=1e-5), nn.SiLU(), nn.Conv2d(WIDTH, 4, 3, padding=1)
        )
        nn.init.zeros_(self.out[2].weight)

    def forward(self, x, t, context):
        half = FULL // 2
        freqs = torch.exp(-math.log(10000) * torch.arange(half, device=x.device, dtype=torch.float32) / half)
        args = t.float()[:, None] * freqs[None]
        emb = self.time_embed(torch.cat([torch.cos(args), torch.sin(args)], dim=-1))
        skips = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, emb, context)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, emb, context)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in block:
                x = layer(x, emb, context)
        return self.out(x)


class TextLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = NarrowLayerNorm(TEXT, TEXT_FULL), NarrowLayerNorm(TEXT, TEXT_FULL)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(TEXT, TEXT) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(TEXT, TEXT_MLP), nn.Linear(TEXT_MLP, TEXT)

    def forward(self, x):
        y = self.layer_norm1(x)
        x = x + self.out_proj(attend(self.q_proj(y), self.k_proj(y), self.v_proj(y), TEXT_HEAD, causal=True))
        y = self.fc1(self.layer_norm2(x))
        return x + self.fc2(y * torch.sigmoid(1.702 * y))


class TextEncoder(nn.Module):
    """The first layers of a CLIP-L text model, over a dense re-indexing of the token ids that captions use."""

    def __init__(self, used_tokens: int):
        super().__init__()
        self.token_embedding = nn.Embedding(used_tokens, TEXT)
        self.position_embedding = nn.Parameter(torch.randn(TEXT_TOKENS, TEXT) * 0.1)
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        self.layers = nn.ModuleList(TextLayer() for _ in range(TEXT_LAYERS))
        self.final_layer_norm = NarrowLayerNorm(TEXT, TEXT_FULL)

    def forward(self, ids):
        x = self.token_embedding(ids) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class Block(nn.Module):
    """A block of the tiny autoencoder; one whose weights are zero passes its (non-negative) input on."""

    def __init__(self):
        super().__init__()

        def conv():
            return nn.Conv2d(AE, AE, 3, padding=1)

        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())

    def forward(self, x):
        return F.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


Pass = nn.Identity  # stands where the full-size autoencoder has a block that this one leaves at zero


def encoder() -> nn.Sequential:
    def down():
        return nn.Conv2d(AE, AE, 3, stride=2, padding=1, bias=False)

    return nn.Sequential(
        nn.Conv2d(3, AE, 3, padding=1),
        Block(),
        down(),
        Block(),
        Pass(),
        Pass(),
        down(),
        Block(),
        Block(),
        Pass(),
        down(),
        Block(),
        Block(),
        Pass(),
        nn.Conv2d(AE, 4, 3, padding=1),
    )


def decoder() -> nn.Sequential:
    def up():
        return (nn.Upsample(scale_factor=2), nn.Conv2d(AE, AE, 3, padding=1, bias=False))

    return nn.Sequential(
        Clamp(),
        nn.Conv2d(4, AE, 3, padding=1),
        nn.ReLU(),
        Block(),
        Block(),
        Block(),
        *up(),
        Block(),
        Block(),
        Pass(),
        *up(),
        Block(),
        Pass(),
        Pass(),
        *up(),
        Block(),
        nn.Conv2d(AE, 3, 3, padding=1),
    )


def picture_trunk() -> nn.Sequential:
    """(B, 3, 64, 64) -> (B, 128): what both judges see a picture with."""
    layers, c = [], 3
    for w in (16, 32, 64, 96):
        layers += [
            nn.Conv2d(c, w, 3, stride=2, padding=1),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            nn.Conv2d(w, w, 3, padding=1),
            nn.BatchNorm2d(w),
            nn.ReLU(),
        ]
        c = w
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(c * 16, 128), nn.ReLU())


class Judge(nn.Module):
    """Tells what a 64x64 picture shows: character (the last class: none), style and background."""

    def __init__(self, characters: int, styles: int, backgrounds: int):
        super().__init__()
        self.trunk = picture_trunk()
        self.character = nn.Linear(128, characters + 1)
        self.style = nn.Linear(128, styles)
        self.background = nn.Linear(128, backgrounds)

    def forward(self, x):
        h = self.trunk(x * 2 - 1)
        return {"character": self.character(h), "style": self.style(h), "background": self.background(h)}


class AttributeJudge(nn.Module):
    """Tells what the thing in a 64x64 picture is made of: heads = {attribute: number of values}."""

    def __init__(self, heads: dict[str, int]):
        super().__init__()
        self.trunk = picture_trunk()
        self.heads = nn.ModuleDict({name: nn.Linear(128, n) for name, n in heads.items()})

    def forward(self, x):
        h = self.trunk(x * 2 - 1)
        return {name: head(h) for name, head in self.heads.items()}


def load_unet_state() -> dict[str, torch.Tensor]:
    """The narrow U-Net's weights, float16; they are stored in two files of a few MB."""
    return {k: v for part in (1, 2) for k, v in load_file(TUNED / f"unet_{part}.safetensors").items()}


def load_weights(module: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """Puts float32 copies of the weights into a module and makes it ready to run."""
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return module.eval().requires_grad_(False)
