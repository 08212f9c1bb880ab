"""Characters erased from the two miniature diffusion transformers with the pack's defaults; the host's sampler draws.

    python -m benchmarks.transformers [--only NAME ...] [--each N] [--write]       (in tools/)

On the `test` prompts; about a minute a character and model on two cores.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import inprocess

inprocess.start()  # before anything of comfy is imported

import comfy.sample
import comfy.sd
import comfy.utils
import torch

from benchmarks import judging, tables
from benchmarks.erasers import Eraser, character_plan, settings_of
from get_comfyui import HOME
from mini_sd import dit_layout
from mini_sd.world import CHARACTERS

BASE = HOME / "transformers"  # not among the models of the host that other tests list
STEPS, CFG = 12, 4.0
NAMES = {"sd3": "joint attention (SD 3 layout)", "wan": "cross-attention (Wan t2v layout)"}
WEIGHT = settings_of("object or character", 0.5, transformer=True)[0].keep_weight  # of PURE Erase Concept
GROUPS = ["named", "name_free", "others", "styles", "shapes"]


@dataclass
class Studio:
    """A MODEL with its CLIP and VAE, from files, and what it draws."""

    model: Any
    clip: Any
    vae: Any
    latent: tuple[int, ...]  # shape of one

    @classmethod
    def load(cls, kind: str) -> Studio:
        if kind == "sd3":
            (path,) = dit_layout.install(BASE, dit_layout.SD3)
            model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(path))
            return cls(model, inprocess.quick_clip(clip), vae, (1, 16, 8, 8))
        net, clip, vae = map(str, dit_layout.install(BASE, dit_layout.WAN, dit_layout.CLIP, dit_layout.WAN_VAE))
        return cls(
            comfy.sd.load_diffusion_model(net),
            inprocess.quick_clip(comfy.sd.load_clip([clip], clip_type=comfy.sd.CLIPType.SD3)),
            comfy.sd.VAE(sd=comfy.utils.load_torch_file(vae)),
            (1, 16, 1, 8, 8),
        )

    def conditioning(self, texts: list[str]) -> list:
        encoded = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))[0] for text in texts]
        pooled = torch.cat([extra["pooled_output"] for _, extra in encoded])
        return [[torch.cat([cond for cond, _ in encoded]), {"pooled_output": pooled}]]

    @torch.inference_mode()
    def draw(self, model, entries: list[dict], batch: int = 16) -> torch.Tensor:
        """(N, 3, 64, 64) pictures of entries by a MODEL, which may be an edited one."""
        out = []
        for some in (entries[i : i + batch] for i in range(0, len(entries), batch)):
            noise = torch.cat([comfy.sample.prepare_noise(torch.zeros(self.latent), e["seed"]) for e in some])
            positive, negative = self.conditioning([e["prompt"] for e in some]), self.conditioning([""])
            latents = comfy.sample.sample(
                model,
                noise,
                STEPS,
                CFG,
                "euler",
                "simple",
                positive,
                negative,
                torch.zeros_like(noise),
                disable_pbar=True,
                seed=0,
            )
            out.append(self.vae.decode(latents).reshape(-1, 64, 64, 3).movedim(-1, 1).clamp(0, 1))
        return torch.cat(out)

    def shares(self, model, entries: list[dict]) -> dict[str, judging.Share]:
        """Per group how many pictures show what the group is about."""
        seen = [{**e, "after": s} for e, s in zip(entries, judging.judged(self.draw(model, entries)), strict=True)]
        return judging.shares(seen)


def eraser(studio: Studio, **capture) -> Eraser:
    return Eraser((studio.model, studio.clip, studio.vae), **capture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(CHARACTERS))
    parser.add_argument("--each", type=int, default=12, help="named and name-free pictures a character")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = []
    for kind, name in NAMES.items():
        studio = Studio.load(kind)
        edits, results = eraser(studio), []
        for target in options.only:
            entries = judging.character_entries(target, "test", options.each, 1, 0, 6)
            edited = edits.erase(character_plan(target), keep_weight=WEIGHT)
            results.append(studio.shares(edited, entries))
            print(kind, target, {g: str(results[-1][g]) for g in GROUPS}, flush=True)
        rows.append([name, *(tables.pooled(results, g) for g in GROUPS)])
    table = tables.markdown(tables.heading("model", GROUPS), rows)
    print(table)
    if options.write:
        tables.fill({"transformers": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
