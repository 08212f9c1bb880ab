"""Trains the miniature checkpoint: autoencoder, judge, then text encoder and U-Net.

    python -m mini_sd.train --vae-seconds 1500 --judge-seconds 180 --seconds 3600 --count 24000 --batch 64 --vae-batch 8 --workers 2 --out DIR

(about 90 minutes on two CPU cores, which is how the weights beside this file were made; a GPU needs minutes)
"""
from __future__ import annotations

import argparse
import json
import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from model import TEXT_TOKENS, Judge, TextEncoder, UNet, decoder, encoder
from render import SIZE, encode, render
from world import BACKGROUNDS, STYLES, WORLDS, Scene, caption, sample_scene

HERE = Path(__file__).parent
BOS, EOS = 49406, 49407
CAPTIONS = 6


class Words:
    """Word by word CLIP BPE ids (they concatenate to the tokenizer's own output), re-indexed densely."""

    def __init__(self, world: str):
        self.table: dict[str, list[int]] = json.loads((HERE / f"tokens_{world}.json").read_text())
        self.ids = sorted({i for row in self.table.values() for i in row} | {BOS, EOS})
        self.dense = {t: i for i, t in enumerate(self.ids)}

    def row(self, text: str) -> list[int]:
        ids = [BOS] + [i for w in text.replace(",", " , ").split() for i in self.table[w]]
        ids = ids[: TEXT_TOKENS - 1]
        return [self.dense[i] for i in ids + [EOS] * (TEXT_TOKENS - len(ids))]


def make_part(args):
    world_name, seed, count = args
    world, words, rng = WORLDS[world_name], Words(world_name), random.Random(seed)
    scenes = [sample_scene(world, rng) for _ in range(count)]
    names = list(world.characters)
    labels = torch.tensor([[names.index(s.character) if s.character else len(names), list(STYLES).index(s.style),
                            list(BACKGROUNDS).index(s.background)] for s in scenes], dtype=torch.int16)
    text = torch.tensor([[words.row(caption(world, s, rng)) for _ in range(CAPTIONS)] for s in scenes], dtype=torch.int16)
    return encode(scenes), labels, text


def make_scenes(world: str, count: int, workers: int):
    part = max(1, count // (workers * 4))
    jobs = [(world, WORLDS[world].seed * 100003 + i, part) for i in range(max(1, count // part))]
    with ProcessPoolExecutor(workers) as pool:
        return [torch.cat(t) for t in zip(*pool.map(make_part, jobs))]


def make_data(world: str, scenes, device):
    rows, labels, text = (t.to(device) for t in scenes)
    generator = torch.Generator(device).manual_seed(7 + WORLDS[world].seed)
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
    enc, dec = encoder().to(device).to(memory_format=torch.channels_last), decoder().to(device).to(memory_format=torch.channels_last)
    params = [*enc.parameters(), *dec.parameters()]
    opt = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0, fused=device.type == "cuda")
    penc, pdec = (torch.compile(enc), torch.compile(dec)) if device.type == "cuda" else (enc, dec)

    def step(i):
        x = images[torch.randint(len(images), (batch,), device=device)].float().div(255).contiguous(memory_format=torch.channels_last)
        with amp(device):
            z = penc(x)
            noisy = z + torch.randn_like(z) * 0.08
            y = pdec(noisy).float()
        z = z.float()
        mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
        edges = (y[..., 1:] - y[..., :-1] - x[..., 1:] + x[..., :-1]).abs().mean() + (y[..., 1:, :] - y[..., :-1, :] - x[..., 1:, :] + x[..., :-1, :]).abs().mean()
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
            out[i : i + 1024] = enc(images[i : i + 1024].float().div(255).contiguous(memory_format=torch.channels_last)).float()
    return out


def train_judge(world, images, labels, enc, dec, seconds, batch, device):
    judge = Judge(len(WORLDS[world].characters), len(STYLES), len(BACKGROUNDS)).to(device)
    opt = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=1e-2, fused=device.type == "cuda")
    correct = 0.0

    def step(i):
        nonlocal correct
        pick = torch.randint(len(images), (batch,), device=device)
        x, want = images[pick].float().div(255), labels[pick].long()
        with torch.no_grad(), amp(device):  # half of them as the autoencoder redraws them, slightly blurred by noise
            half = batch // 2
            z = enc(x[:half])
            x = torch.cat([dec(z + torch.randn_like(z) * 0.25 * torch.rand(half, 1, 1, 1, device=device)).float().clamp(0, 1), x[half:]])
        x = (x + torch.randn_like(x) * 0.03).clamp(0, 1)
        with amp(device):
            got = judge(x)
        loss = sum(F.cross_entropy(got[k].float(), want[:, j], label_smoothing=0.05) for j, k in enumerate(("character", "style", "background")))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        correct = [round((got[k].argmax(1) == want[:, j]).float().mean().item(), 4) for j, k in enumerate(("character", "style", "background"))] if i % 50 == 0 else correct
        return lambda: f"loss {loss:.3f} accuracy {correct}"

    run_for(seconds, opt, 2e-3, step, f"judge {world}")
    return judge.eval()


def schedule(device):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64, device=device) ** 2
    return torch.cumprod(1 - betas, 0).float()


def train_generator(world, latents, text, seconds, batch, device, peak, out):
    words = Words(world)
    unet, encode_text = UNet().to(device), TextEncoder(len(words.ids)).to(device)
    params = [*unet.parameters(), *encode_text.parameters()]
    average = [p.detach().clone() for p in params]
    opt = torch.optim.AdamW(params, lr=peak, betas=(0.9, 0.98), weight_decay=1e-3, fused=device.type == "cuda")
    alphas, saved = schedule(device), time.time()
    empty = torch.tensor(words.row(""), device=device)
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
        nonlocal saved
        if time.time() - saved > 300:
            saved = time.time()
            names = [f"unet.{n}" for n, _ in unet.named_parameters()] + [f"text.{n}" for n, _ in encode_text.named_parameters()]
            save_file({n: a.clone().contiguous() for n, a in zip(names, average)}, out / f"progress_{world}.safetensors")
        with torch.no_grad():
            torch._foreach_lerp_(average, params, min(1 - (i + 1) / (i + 10), 1.0) if i < 3000 else 0.002)
        return lambda: f"loss {loss:.4f}"

    run_for(seconds, opt, peak, step, f"generator {world}")
    with torch.no_grad():
        for p, a in zip(params, average):
            p.copy_(a)
    return unet.eval(), encode_text.eval()


@torch.no_grad()
def sample(unet, encode_text, dec, words, prompts, device, steps=20, cfg=4.0, seed=0):
    alphas = schedule(device)
    ids = torch.tensor([words.row(p) for p in prompts] + [words.row("")] * len(prompts), device=device)
    x = torch.randn(len(prompts), 4, SIZE // 8, SIZE // 8, generator=torch.Generator("cpu").manual_seed(seed)).to(device)
    times = torch.linspace(999, 0, steps + 1, device=device).long()
    with amp(device):
        context = encode_text(ids)
        for now, then in zip(times[:-1], times[1:]):
            cond, free = unet(torch.cat([x, x]), now.expand(2 * len(x)), context).float().chunk(2)
            eps = free + cfg * (cond - free)
            x0 = (x - (1 - alphas[now]).sqrt() * eps) / alphas[now].sqrt()
            x = alphas[then].sqrt() * x0 + (1 - alphas[then]).sqrt() * eps
        return dec(x).float().clamp(0, 1)


def evaluate(world_name, unet, encode_text, dec, judge, device, each=24):
    world, words, rng = WORLDS[world_name], Words(world_name), random.Random(99)
    report, pictures = {}, []
    for name_it in (True, False):
        for i, name in enumerate(world.characters):
            scenes = [Scene("character", name, world.characters[name], background=rng.choice(list(BACKGROUNDS))) for _ in range(each)]
            images = sample(unet, encode_text, dec, words, [caption(world, s, rng, name_it=name_it) for s in scenes], device, seed=i)
            hit = (judge(images)["character"].argmax(1) == i).float().mean().item()
            report[f"{name}{'' if name_it else ' (described)'}"] = round(hit, 3)
            pictures.append(images[:8])
    for named in (True, False):
        for style in world.style_names:
            scenes = [Scene("shapes", None, None, [(rng.choice(("circle", "star", "heart", "square")), "red")], rng.choice(list(BACKGROUNDS)), style) for _ in range(each)]
            images = sample(unet, encode_text, dec, words, [caption(world, s, rng, name_style=named) for s in scenes], device, seed=5)
            hit = (judge(images)["style"].argmax(1) == list(STYLES).index(style)).float().mean().item()
            report[f"style {style}{'' if named else ' (described)'}"] = round(hit, 3)
            pictures.append(images[:8])
    return report, torch.cat(pictures)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--worlds", nargs="+", default=["A"])
    p.add_argument("--seconds", nargs="+", type=float, default=[600])
    p.add_argument("--vae-seconds", type=float, default=110)
    p.add_argument("--judge-seconds", type=float, default=30)
    p.add_argument("--count", type=int, default=300_000)
    p.add_argument("--batch", type=int, default=1024)
    p.add_argument("--vae-batch", type=int, default=256)
    p.add_argument("--peak", type=float, default=1e-3)
    p.add_argument("--workers", type=int, default=14)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    a.out.mkdir(parents=True, exist_ok=True)
    began, enc, dec = time.time(), None, None
    half = lambda m: {k: v.detach().half().cpu().contiguous() for k, v in m.state_dict().items()}  # noqa: E731
    scenes = {world: make_scenes(world, a.count, a.workers) for world in a.worlds}  # before the GPU is touched: it forks
    print(f"scenes: {time.time() - began:.0f}s", flush=True)
    for world, seconds in zip(a.worlds, a.seconds):
        images, labels, text = make_data(world, scenes.pop(world), device)
        print(f"data {world}: {len(images)} pictures, {time.time() - began:.0f}s", flush=True)
        if enc is None:
            enc, dec = train_autoencoder(images, a.vae_seconds, a.vae_batch, device)
            save_file(half(enc), a.out / "vae_encoder.safetensors")
            save_file(half(dec), a.out / "vae_decoder.safetensors")
        judge = train_judge(world, images, labels, enc, dec, a.judge_seconds, 512 if device.type == "cuda" else 64, device)
        save_file({k: v.detach().cpu().contiguous() for k, v in judge.state_dict().items()}, a.out / f"judge_{world}.safetensors")
        latents = to_latents(enc, images, device)
        print(f"latents: mean {latents.mean():.3f} std {latents.std():.3f} by channel {latents.std((0, 2, 3)).tolist()}", flush=True)
        del images
        unet, encode_text = train_generator(world, latents, text, seconds, a.batch, device, a.peak, a.out)
        weights = half(unet)
        first = {k: v for k, v in weights.items() if not k.startswith("output_blocks")}
        save_file(first, a.out / f"unet_{world}_1.safetensors")
        save_file({k: v for k, v in weights.items() if k not in first}, a.out / f"unet_{world}_2.safetensors")
        save_file({**half(encode_text), "token_ids": torch.tensor(Words(world).ids, dtype=torch.int32)}, a.out / f"text_{world}.safetensors")
        report, pictures = evaluate(world, unet, encode_text, dec, judge, device, each=16)
        (a.out / f"report_{world}.json").write_text(json.dumps(report, indent=1))
        print(json.dumps(report), f"{time.time() - began:.0f}s", flush=True)
        n = pictures.shape[0] // 8 * 8
        grid = (pictures[:n] * 255).byte().cpu().view(-1, 8, 3, SIZE, SIZE).permute(0, 3, 1, 4, 2).reshape(-1, 8 * SIZE, 3)
        try:
            from PIL import Image

            Image.fromarray(grid.numpy()).save(a.out / f"samples_{world}.jpg", quality=85)
        except ImportError:
            pass
        print(f"world {world} finished at {time.time() - began:.0f}s", flush=True)


if __name__ == "__main__":
    main()
