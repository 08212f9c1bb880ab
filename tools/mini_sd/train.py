"""Trains the miniature checkpoint: autoencoder, judge, then text encoder and U-Net.

    python -m mini_sd.train --vae-seconds 1500 --judge-seconds 180 --seconds 3600 --count 24000 --batch 64 --vae-batch 8
    --workers 2 --out DIR

(about 90 minutes on two CPU cores, which is how the weights beside this file were made; a GPU needs minutes)
"""

from __future__ import annotations

import argparse
import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .narrow import Judge, TextEncoder, UNet, decoder, encoder, load_unet_state
from .render import SIZE, encode, render
from .studio import BOS, EOS, padded_ids, sigmas, text_encoder, vae_encoder, word_ids
from .world import BACKGROUNDS, CHARACTERS, STYLES, caption, sample_scene

CAPTIONS = 6  # of each scene


def dense_index() -> dict[int, int]:
    """CLIP token id -> row of the narrow text encoder's embedding table."""
    return {t: i for i, t in enumerate(sorted({i for row in word_ids().values() for i in row} | {BOS, EOS}))}


def text_row(text: str, dense: dict[int, int]) -> list[int]:
    return [dense[i] for i in padded_ids(text)]


def make_part(args):
    seed, count = args
    dense, rng = dense_index(), random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    names = list(CHARACTERS)
    labels = torch.tensor(
        [
            [
                names.index(s.character) if s.character else len(names),
                list(STYLES).index(s.style),
                list(BACKGROUNDS).index(s.background),
            ]
            for s in scenes
        ],
        dtype=torch.int16,
    )
    text = torch.tensor(
        [[text_row(caption(s, rng), dense) for _ in range(CAPTIONS)] for s in scenes], dtype=torch.int16
    )
    return encode(scenes), labels, text


def make_scenes(count: int, workers: int):
    part = max(1, count // (workers * 4))
    with ProcessPoolExecutor(workers) as pool:
        return [
            torch.cat(t)
            for t in zip(*pool.map(make_part, [(i, part) for i in range(max(1, count // part))]), strict=True)
        ]


def make_data(scenes, device):
    rows, labels, text = (t.to(device) for t in scenes)
    generator = torch.Generator(device).manual_seed(7)
    images = torch.empty(len(rows), 3, SIZE, SIZE, dtype=torch.uint8, device=device)
    for i in range(0, len(rows), 1024):
        images[i : i + 1024] = (render(rows[i : i + 1024], generator) * 255 + 0.5).to(torch.uint8)
    return images, labels, text


def amp(device):
    return torch.autocast(device.type, dtype=torch.bfloat16)


def cosine(step_fraction: float, peak: float, warm: float = 0.02) -> float:
    if step_fraction < warm:
        return peak * step_fraction / warm
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step_fraction - warm) / (1 - warm)))))


def run_for(seconds: float, optimizer, peak: float, step, label: str):
    """Calls step(i) until the time is up, under a cosine schedule over that time."""
    start, i, last = time.time(), 0, time.time()
    while (fraction := (time.time() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine(fraction, peak) + 1e-7
        report = step(i)
        i += 1
        if time.time() - last > 60:
            last = time.time()
            print(f"{label} {i} steps, {last - start:.0f}s, {report()}", flush=True)
    print(f"{label} done: {i} steps, {report()}", flush=True)


def train_autoencoder(images, seconds, batch, device):
    enc, dec = (
        encoder().to(device).to(memory_format=torch.channels_last),
        decoder().to(device).to(memory_format=torch.channels_last),
    )
    params = [*enc.parameters(), *dec.parameters()]
    opt = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0, fused=device.type == "cuda")
    penc, pdec = (torch.compile(enc), torch.compile(dec)) if device.type == "cuda" else (enc, dec)

    def step(i):
        x = (
            images[torch.randint(len(images), (batch,), device=device)]
            .float()
            .div(255)
            .contiguous(memory_format=torch.channels_last)
        )
        with amp(device):
            z = penc(x)
            noisy = z + torch.randn_like(z) * 0.08
            y = pdec(noisy).float()
        z = z.float()
        mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
        edges = (y[..., 1:] - y[..., :-1] - x[..., 1:] + x[..., :-1]).abs().mean() + (
            y[..., 1:, :] - y[..., :-1, :] - x[..., 1:, :] + x[..., :-1, :]
        ).abs().mean()
        fit = (y - x).abs().mean() + 2 * ((y - x) ** 2).mean()
        loss = fit + 0.5 * edges + 0.02 * (mean**2 + (var - 1) ** 2).mean() + 0.02 * F.relu(z.abs() - 4).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        return lambda: f"mse {((y - x) ** 2).mean():.5f} latent std {z.std():.3f}"

    run_for(seconds, opt, 1.2e-3, step, "autoencoder")
    return enc.eval(), dec.eval()


@torch.no_grad()
def to_latents(enc, images, device):
    out = torch.empty(len(images), 4, SIZE // 8, SIZE // 8, device=device)
    for i in range(0, len(images), 1024):
        with amp(device):
            out[i : i + 1024] = enc(
                images[i : i + 1024].float().div(255).contiguous(memory_format=torch.channels_last)
            ).float()
    return out


def train_judge(images, labels, enc, dec, seconds, batch, device):
    judge = Judge(len(CHARACTERS), len(STYLES), len(BACKGROUNDS)).to(device)
    opt = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=1e-2, fused=device.type == "cuda")
    correct = 0.0

    def step(i):
        nonlocal correct
        pick = torch.randint(len(images), (batch,), device=device)
        x, want = images[pick].float().div(255), labels[pick].long()
        with torch.no_grad(), amp(device):  # half of them as the autoencoder redraws them, slightly blurred by noise
            half = batch // 2
            z = enc(x[:half])
            x = torch.cat(
                [
                    dec(z + torch.randn_like(z) * 0.25 * torch.rand(half, 1, 1, 1, device=device)).float().clamp(0, 1),
                    x[half:],
                ]
            )
        x = (x + torch.randn_like(x) * 0.03).clamp(0, 1)
        with amp(device):
            got = judge(x)
        loss = sum(
            F.cross_entropy(got[k].float(), want[:, j], label_smoothing=0.05)
            for j, k in enumerate(("character", "style", "background"))
        )
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        correct = (
            [
                round((got[k].argmax(1) == want[:, j]).float().mean().item(), 4)
                for j, k in enumerate(("character", "style", "background"))
            ]
            if i % 50 == 0
            else correct
        )
        return lambda: f"loss {loss:.3f} accuracy {correct}"

    run_for(seconds, opt, 2e-3, step, "judge")
    return judge.eval()


def train_generator(latents, text, seconds, batch, device, peak, tune=False):
    """Text encoder and U-Net, from nothing or (tune) from the weights that are there."""
    dense = dense_index()
    unet, encode_text = UNet().to(device), TextEncoder(len(dense)).to(device)
    if tune:
        unet.load_state_dict(load_unet_state())
        encode_text.load_state_dict(text_encoder()[0].state_dict())
    params = [*unet.parameters(), *encode_text.parameters()]
    average = [p.detach().clone() for p in params]
    opt = torch.optim.AdamW(params, lr=peak, betas=(0.9, 0.98), weight_decay=1e-3, fused=device.type == "cuda")
    alphas = (1 / (1 + sigmas() ** 2)).to(device)
    empty = torch.tensor(text_row("", dense), device=device)
    punet = torch.compile(unet) if device.type == "cuda" else unet
    ptext = torch.compile(encode_text) if device.type == "cuda" else encode_text

    def step(i):
        pick = torch.randint(len(latents), (batch,), device=device)
        ids = text[pick, torch.randint(CAPTIONS, (batch,), device=device)].long()
        ids = torch.where(torch.rand(batch, 1, device=device) < 0.1, empty, ids)
        x0, t = latents[pick], torch.randint(1000, (batch,), device=device)
        a = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(x0)
        with amp(device):
            eps = punet((a.sqrt() * x0 + (1 - a).sqrt() * noise), t, ptext(ids)).float()
        snr = (a / (1 - a)).flatten()
        loss = (((eps - noise) ** 2).mean((1, 2, 3)) * snr.clamp(max=5) / snr).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, min(1 - (i + 1) / (i + 10), 1.0) if i < 3000 else 0.002)
        return lambda: f"loss {loss:.4f}"

    run_for(seconds, opt, peak, step, "generator")
    with torch.no_grad():
        for p, a in zip(params, average, strict=True):
            p.copy_(a)
    return unet.eval(), encode_text.eval()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seconds", type=float, default=600)
    p.add_argument("--vae-seconds", type=float, default=110)
    p.add_argument("--judge-seconds", type=float, default=30)
    p.add_argument("--count", type=int, default=300_000)
    p.add_argument("--batch", type=int, default=1024)
    p.add_argument("--vae-batch", type=int, default=256)
    p.add_argument("--peak", type=float, default=1e-3)
    p.add_argument("--workers", type=int, default=14)
    p.add_argument("--tune", action="store_true", help="text encoder and U-Net alone, from the weights that are there")
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    a.out.mkdir(parents=True, exist_ok=True)

    def half(m):
        return {k: v.detach().half().cpu().contiguous() for k, v in m.state_dict().items()}

    scenes = make_scenes(a.count, a.workers)  # before the GPU is touched: it forks
    images, labels, text = make_data(scenes, device)
    if a.tune:
        enc = vae_encoder().to(device)
    else:
        enc, dec = train_autoencoder(images, a.vae_seconds, a.vae_batch, device)
        save_file(half(enc), a.out / "vae_encoder.safetensors")
        save_file(half(dec), a.out / "vae_decoder.safetensors")
        judge = train_judge(images, labels, enc, dec, a.judge_seconds, 512 if device.type == "cuda" else 64, device)
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in judge.state_dict().items()}, a.out / "judge.safetensors"
        )
    latents = to_latents(enc, images, device)
    del images
    unet, encode_text = train_generator(latents, text, a.seconds, a.batch, device, a.peak, a.tune)
    weights = half(unet)
    first = {k: v for k, v in weights.items() if not k.startswith("output_blocks")}
    save_file(first, a.out / "unet_1.safetensors")
    save_file({k: v for k, v in weights.items() if k not in first}, a.out / "unet_2.safetensors")
    save_file(
        {**half(encode_text), "token_ids": torch.tensor(list(dense_index()), dtype=torch.int32)},
        a.out / "text.safetensors",
    )


if __name__ == "__main__":
    main()
