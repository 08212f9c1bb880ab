"""Trains a miniature diffusion transformer by flow matching on the world of the miniature Stable Diffusion.

    python -m mini_sd.train_dit wan|sd3|zimage --seconds 2600 --out DIR        (in tools/)

It trains by the clock, and on a CPU; every minute it says how far it is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import dit, studio
from .train import CAPTIONS, cosine, dense_index, make_data, make_scenes, text_row, to_latents


def data(count):
    """Latents (N, 4, 8, 8), caption rows (N, CAPTIONS, 77) and whether it is a plain shape, of drawn scenes."""
    scenes = make_scenes(count, 2)
    images, _, text = make_data(scenes, torch.device("cpu"))
    with torch.no_grad():
        latents = to_latents(studio.vae_encoder(), images, torch.device("cpu"))
    return latents.clone(), text, scenes[0][:, 0] == 0


def main():
    p = argparse.ArgumentParser()
    p.add_argument("kind", choices=dit.BUILD)
    p.add_argument("--seconds", type=float, default=2600)
    p.add_argument("--count", type=int, default=20000, help="scenes that are drawn to train on")
    p.add_argument("--captions", type=int, help="in a batch; 48 for wan, 96 for the others")
    p.add_argument("--each", type=int, help="noise levels per caption in a batch; 3 for wan, 1 for the others")
    p.add_argument("--peak", type=float, default=1e-3)
    p.add_argument("--shift", type=float, default=3.0)
    p.add_argument(
        "--shapes", type=float, default=2.5, help="how much oftener than the rest plain shapes are shown: the hardest"
    )
    p.add_argument("--init", type=Path, help="weights to go on from")
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    captions, each = a.captions or (48 if a.kind == "wan" else 96), a.each or (3 if a.kind == "wan" else 1)
    dit.train_on_a_cpu()
    torch.manual_seed(0)
    latents, text, plain = data(a.count)
    chance = torch.where(plain, a.shapes, 1.0)
    dense = dense_index()
    empty = torch.tensor(text_row("", dense))
    sample = dit.encode_text(text[:512, 0].long(), dense=True)[:, :28].flatten(0, 1)
    mean, std = sample.mean(0), sample.std(0)
    net = dit.BUILD[a.kind]()
    if a.kind == "zimage":
        dit.start_from(net, sample)
        mean, std = torch.zeros_like(mean), torch.ones_like(std)  # its norm takes the text as it is
    if a.init:
        state = {k: v.float() for k, v in load_file(a.init).items()}
        w, b = (f"{dit.EMBED[a.kind]}.{e}" for e in ("weight", "bias"))
        net.load_state_dict({**state, w: state[w] * std, b: state[b] + state[w] @ mean})
    params = [p for name, p in net.named_parameters() if name not in dit.UNUSED]
    print(f"{sum(q.numel() for q in params) / 1e6:.2f} M parameters", flush=True)
    average = [q.detach().clone() for q in params]
    decay = [q for q in params if q.dim() > 1]
    rest = [q for q in params if q.dim() <= 1]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 1e-3}, {"params": rest, "weight_decay": 0.0}],
        lr=a.peak,
        betas=(0.9, 0.98),
        fused=True,
    )
    batch = captions * each

    start = last = time.time()
    losses, i = [], 0
    while (fraction := (time.time() - start) / a.seconds) < 1:
        for group in opt.param_groups:
            group["lr"] = cosine(fraction, a.peak) + 1e-7
        pick = torch.multinomial(chance, captions, replacement=True)
        ids = text[pick, torch.randint(CAPTIONS, (captions,))].long()
        ids = torch.where(torch.rand(captions, 1) < 0.1, empty, ids)
        context = (dit.encode_text(ids, dense=True) - mean) / std
        x0 = latents[pick].repeat_interleave(each, 0)
        u = (torch.randperm(batch) + torch.rand(batch)) / batch
        sigma = a.shift * u / (1 + (a.shift - 1) * u)
        s, noise = sigma.view(-1, 1, 1, 1), torch.randn_like(x0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            v = dit.velocity(a.kind, net, s * noise + (1 - s) * x0, sigma, context).float()
        loss = ((v - (noise - x0)) ** 2).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        i += 1
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1 - i / (i + 9) if i < 3000 else 0.002)
        losses.append(loss.item())
        now = time.time()
        if now - last > 60:
            last, recent = now, losses[-200:]
            print(f"{i} steps, {now - start:.0f}s, loss {sum(recent) / len(recent):.4f}", flush=True)
    names = [name for name, _ in net.named_parameters() if name not in dit.UNUSED]
    state = dict(zip(names, average, strict=True))
    state = dit.fold(a.kind, state, mean, std)
    a.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in state.items()}, a.out / f"{a.kind}.safetensors")
    print(f"done: {i} steps of {batch}")


if __name__ == "__main__":
    main()
