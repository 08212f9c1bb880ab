"""The autoencoder for Wan's five-dimensional latents, which the host's TAESD cannot decode (it is 2-D).

TAEHV's layout (lighttaew2_1: plain numbers, float32), narrow. The latents are those of the frozen TAESD encoder, in
Wan's units. The encoder was trained for minutes and is good for previews only.

    python -m mini_sd.taehv --decoder-seconds 420 --encoder-seconds 240 --out DIR       (in tools/)
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from . import dit, studio  # isort: skip  (starts the host, before anything of comfy is imported)

import comfy.latent_formats
import comfy.taesd.taehv
import torch
import torch.nn as nn
from safetensors.torch import save_file

from .layout import put
from .narrow import AE, Block, Clamp, Pass
from .render import encode as encode_scenes
from .render import render
from .train import amp, run_for, to_latents
from .world import sample_scene

LAST = 64  # channels before the picture, all of TAEHV's


def spread():
    """Mean and deviation (1, 4, 1, 1) with which the host's Wan latents leave the model, of the live channels."""
    wan = comfy.latent_formats.Wan21()
    return [t[:, dit.WAN_CHANNELS, 0] for t in (wan.latents_mean, wan.latents_std)]


def stage() -> tuple[nn.Module, ...]:
    """What stands at each size."""
    return Block(), Block(), Block()


def decoder() -> nn.Sequential:
    def up(out):
        return nn.Upsample(scale_factor=2), Pass(), nn.Conv2d(AE, out, 3, padding=1, bias=False)

    return nn.Sequential(
        Clamp(),
        nn.Conv2d(dit.LIVE, AE, 3, padding=1),
        nn.ReLU(),
        *stage(),
        *up(AE),
        *stage(),
        *up(AE),
        *stage(),
        *up(LAST),
        nn.ReLU(),
        nn.Conv2d(LAST, 3, 3, padding=1),
    )


def encoder() -> nn.Sequential:
    def down():
        return Pass(), nn.Conv2d(AE, AE, 3, stride=2, padding=1, bias=False)

    return nn.Sequential(
        nn.Conv2d(3, AE, 3, padding=1),
        nn.ReLU(),
        *down(),
        *stage(),
        *down(),
        *stage(),
        *down(),
        *stage(),
        nn.Conv2d(AE, dit.LIVE, 3, padding=1),
    )


def expand(narrow: dict) -> dict:
    """TAEHV's state, float32: in float16 the host would take it for HunyuanVideo's."""
    full = comfy.taesd.taehv.TAEHV(dit.LATENT).state_dict()
    out = {k: torch.zeros_like(v) for k, v in full.items()}
    for key, w in narrow.items():
        w = w.float()
        if key == "decoder.1.weight":
            w = dit.channels(w, dit.WAN_CHANNELS, 1)
        elif key.startswith("encoder.17."):
            w = dit.channels(w, dit.WAN_CHANNELS, 0)
        out[key] = put(full[key].shape, w, w.dtype)
    for w in out.values():
        if w.shape[-2:] == (1, 1):  # TGrow: every frame the same; TPool: the first frame
            n = min(w.shape[:2])
            for i in range(w.shape[0] // n):
                w[i * n : (i + 1) * n, :n, 0, 0] = torch.eye(n)
    dead = [c for c in range(dit.LATENT) if c not in dit.WAN_CHANNELS]
    out["encoder.17.bias"][dead] = comfy.latent_formats.Wan21().latents_mean.flatten()[dead]
    return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--decoder-seconds", type=float, default=420)
    p.add_argument("--encoder-seconds", type=float, default=240)
    p.add_argument("--count", type=int, default=8000)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    torch.manual_seed(0)
    rng = random.Random(11)
    rows = encode_scenes([sample_scene(rng) for _ in range(a.count)])
    g = torch.Generator().manual_seed(11)
    images = torch.cat([(render(r, g) * 255 + 0.5).to(torch.uint8) for r in rows.split(1024)])
    with torch.no_grad():
        latents = to_latents(studio.vae_encoder(), images, torch.device("cpu")).clone()
    mean, std = spread()
    dec = decoder()
    old, new = studio.vae_decoder().state_dict(), dec.state_dict()
    for was, now in ((1, 1), (3, 3), (4, 4), (5, 5), (7, 8), (8, 9), (9, 10), (12, 14), (13, 15)):
        new.update({k.replace(f"{was}.", f"{now}.", 1): v.clone() for k, v in old.items() if k.startswith(f"{was}.")})
    new["1.weight"] /= std
    dec.load_state_dict(new)
    enc = encoder()
    dec, enc = (m.to(memory_format=torch.channels_last) for m in (dec, enc))

    def fit(module, peak, seconds, loss_of, label):
        params = list(module.parameters())
        opt = torch.optim.AdamW(params, lr=peak, weight_decay=0.0, fused=True)

        def step(i):
            pick = torch.randint(len(images), (a.batch,))
            x = images[pick].float().div(255).contiguous(memory_format=torch.channels_last)
            loss, say = loss_of(x, latents[pick])
            opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            opt.step()
            return say

        run_for(seconds, opt, peak, step, label)

    def decoding(x, z):
        with amp(x.device):
            y = dec((z + torch.randn_like(z) * 0.08) * std + mean).float()
        edges = (y[..., 1:] - y[..., :-1] - x[..., 1:] + x[..., :-1]).abs().mean() + (
            y[..., 1:, :] - y[..., :-1, :] - x[..., 1:, :] + x[..., :-1, :]
        ).abs().mean()
        mse = ((y - x) ** 2).mean()
        return (y - x).abs().mean() + 2 * mse + 0.5 * edges, lambda: f"mse {mse:.5f}"

    def encoding(x, z):
        with amp(x.device):
            y = enc(x).float()
        mse = ((y - (z * std + mean)) / std).square().mean()
        return mse, lambda: f"mse {mse:.5f}"

    fit(dec, 1.2e-3, a.decoder_seconds, decoding, "decoder")
    fit(enc, 2e-3, a.encoder_seconds, encoding, "encoder")
    a.out.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            f"{side}.{k}": v.half().contiguous()
            for side, m in (("decoder", dec), ("encoder", enc))
            for k, v in m.state_dict().items()
        },
        a.out / "wan_vae.safetensors",
    )
    with torch.no_grad():
        x = images[:512].float() / 255
        again = dec(latents[:512] * std + mean), studio.vae_decoder()(latents[:512]), dec(enc(x))
        print(
            "mse: decoder, TAESD decoder, encoder + decoder:", [round(((y - x) ** 2).mean().item(), 5) for y in again]
        )


if __name__ == "__main__":
    main()
