"""Characters and styles erased from the three miniature diffusion transformers: the pack's defaults, beside the erasers
that edit what is made of the text's embeddings. The host's sampler draws.

    python -m benchmarks.transformers [--only characters styles] [--models sd3 wan zimage] [--each N] [--write]

(in tools/; of models that are not named, --write leaves the rows as they are)

On the `test` prompts. An edit W E of every weight that reads the text is the same as E on the text's embeddings,
whatever comes after, and is done so. Each peer has its published setting, and the one of those tried on the miniature
U-Net that is best there (PEERS). OCE, which rotates value weights from the left by what they make of single tokens, has
no such form: in these models an MLP or the picture comes between. Neither have the others where a norm comes before the
first weight that reads the text (the Z-Image layout).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import inprocess

inprocess.start()  # before anything of comfy is imported

import comfy.sample
import comfy.sd
import comfy.utils
import torch
from pure_pack.nodes.host.sites import attention_sites, layout_of

from benchmarks import judging, tables
from benchmarks.erasers import Eraser, Plan, character_plan, settings_of, style_plan
from benchmarks.methods import EMBEDDING_EDITS
from get_comfyui import HOME
from mini_sd import dit, dit_layout
from mini_sd.world import ARTISTS, CHARACTERS

BASE = HOME / "transformers"  # not among the models of the host that other tests list
STEPS, CFG = 12, 4.0
# Joint attention, cross-attention, one stream.
NAMES = {"sd3": "SD 3 layout", "wan": "Wan layout", "zimage": "Z-Image layout"}
PLAIN = "PURE, no ordinary captions in a style"
PEERS = {  # of methods.py's settings
    "UCE": {
        "characters": ("lam 0.5, preserve 1, guide ''", "lam 0.5, preserve 0.02, guide ''"),
        "styles": ("lam 0.5, preserve 1, guide ''", "lam 0.5, preserve 1, guide '', descriptions"),
    },
    "CURE": {"characters": ("alpha 2", "alpha 100"), "styles": ("alpha 2", "alpha 20")},
    "text basis": {"characters": ("0.99/0.9",), "styles": ("0.99/0.9",)},
}


@dataclass(frozen=True)
class What:
    """What is erased: its kind, each target with PURE's plan, its pictures, and the groups of pictures shown."""

    kind: str
    targets: list[str]
    plan: Callable[[str], Plan]
    entries: Callable[[str, int], list[dict]]
    groups: list[str]


WHAT = {
    "characters": What(
        "object or character",
        list(CHARACTERS),
        character_plan,
        lambda target, each: judging.character_entries(target, "test", each, 1, 4, 6),
        ["named", "name_free", "others", "sharing 1", "styles", "shapes", "background"],
    ),
    "styles": What(
        "artistic style",
        list(ARTISTS),
        style_plan,
        lambda target, each: judging.style_entries(target, "test", each, 6, 12),
        ["named", "name_free", "others", "characters", "shapes", "background"],
    ),
}


@dataclass
class Studio:
    """A MODEL with its CLIP and VAE, from files, and what it draws."""

    model: Any
    clip: Any
    vae: Any
    latent: tuple[int, ...]  # shape of one
    before: dict[tuple[str, int], dict] = field(default_factory=dict)  # (prompt, seed) -> what it draws unedited

    @classmethod
    def load(cls, kind: str) -> Studio:
        if kind == "sd3":
            (path,) = dit_layout.install(BASE, dit_layout.SD3)
            model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(path))
            return cls(model, inprocess.quick_clip(clip), vae, (1, 16, 8, 8))
        (path,) = dit_layout.install(BASE, dit_layout.CLIP)
        clip = inprocess.quick_clip(comfy.sd.load_clip([str(path)], clip_type=comfy.sd.CLIPType.SD3))
        if kind == "zimage":
            model, vae = dit_layout.zimage()
            return cls(model, clip, vae, (1, 16, 8, 8))
        net, vae = map(str, dit_layout.install(BASE, dit_layout.WAN, dit_layout.WAN_VAE))
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(vae))
        return cls(comfy.sd.load_diffusion_model(net), clip, vae, (1, 16, 1, 8, 8))

    def conditioning(self, texts: list[str], edit: torch.Tensor | None = None) -> list:
        """Of prompts; edit: (128, 128) E of every token's embedding."""
        encoded = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))[0] for text in texts]
        pooled = torch.cat([extra["pooled_output"] for _, extra in encoded])
        tokens = torch.cat([cond for cond, _ in encoded])
        if edit is not None:
            tokens = torch.cat([tokens[..., : dit.TEXT] @ edit.to(tokens).T, tokens[..., dit.TEXT :]], -1)
        return [[tokens, {"pooled_output": pooled}]]

    def embeddings(self, texts: list[str]) -> torch.Tensor:
        """(n, tokens, 128): the part of what the text encoder gives that is not zero."""
        return self.conditioning(texts)[0][0][..., : dit.TEXT]

    @torch.inference_mode()
    def draw(self, model, entries: list[dict], edit: torch.Tensor | None = None, batch: int = 16) -> torch.Tensor:
        """(N, 3, 64, 64) pictures of entries by a MODEL, which may be an edited one; edit: as conditioning takes it."""
        out = []
        for some in (entries[i : i + batch] for i in range(0, len(entries), batch)):
            noise = torch.cat([comfy.sample.prepare_noise(torch.zeros(self.latent), e["seed"]) for e in some])
            positive, negative = (self.conditioning(texts, edit) for texts in ([e["prompt"] for e in some], [""]))
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

    def shares(self, model, edit: torch.Tensor | None, entries: list[dict]) -> dict[str, judging.Share]:
        """Per group how many pictures show what the group is about; of things that share an attribute, how many show
        what the unedited MODEL draws."""
        new = [e for e in entries if e["group"].startswith("sharing") and (e["prompt"], e["seed"]) not in self.before]
        if new:
            seen = judging.judged(self.draw(self.model, new))
            self.before |= {(e["prompt"], e["seed"]): s for e, s in zip(new, seen, strict=True)}
        after = judging.judged(self.draw(model, entries, edit))
        before = [self.before.get((e["prompt"], e["seed"])) for e in entries]
        parts = zip(entries, before, after, strict=True)
        return judging.shares([{**e, "before": was, "after": s} for e, was, s in parts])


def eraser(studio: Studio, **capture) -> Eraser:
    return Eraser((studio.model, studio.clip, studio.vae), **capture)


def erasers_of(studio: Studio, what: str) -> dict[str, Callable[[str], tuple[Any, torch.Tensor | None]]]:
    """label -> function of a target that gives a MODEL and an edit of the text's embeddings."""
    edits, of = eraser(studio), WHAT[what]
    layout = layout_of(attention_sites(studio.model))
    weight = settings_of(of.kind, 0.5, layout, keys=False)[0].keep_weight

    def pure(target: str, **build) -> tuple[Any, None]:
        return edits.erase(of.plan(target), keep_weight=weight, **build), None

    out = {tables.UNEDITED: lambda _: (studio.model, None), tables.DEFAULTS: pure}
    if layout == "one stream":
        return out
    if what == "characters":
        out[PLAIN] = lambda target: pure(target, ordinary={"styled": 0.0})
    for peer, tried in PEERS.items():
        edit, known = EMBEDDING_EDITS[peer]
        for name in tried[what]:
            out[f"{peer} ({name})"] = lambda t, f=edit, v=known[name]: (studio.model, f(t, v, studio.embeddings))
    return out


def measured(what: str, each: int, kinds: list[str]) -> dict[str, list[tables.Shares]]:
    """model: eraser -> per target the share of each group."""
    out, of = {}, WHAT[what]
    for kind in kinds:
        studio, name = Studio.load(kind), NAMES[kind]
        for label, erase in erasers_of(studio, what).items():
            results = [studio.shares(*edited, of.entries(t, each)) for t in of.targets for edited in [erase(t)]]
            print(kind, label, {g: str(tables.pooled(results, g)) for g in of.groups}, flush=True)
            out[f"{name}: {label}"] = results
    return out


def harmonic(results: list[tables.Shares]) -> float:
    return judging.mean([judging.harmonic(share) for share in results])


def long_table(groups: list[str], found: dict[str, list[tables.Shares]]) -> str:
    """Everything, with intervals."""
    rows = [[label, *(tables.pooled(part, g) for g in groups), harmonic(part)] for label, part in found.items()]
    return tables.markdown(tables.heading("", groups, "harmonic mean"), rows)


def short_table(what: str, found: dict[str, list[tables.Shares]]) -> str:
    """In per cent; of each peer the better of its settings."""
    best: dict[str, list[tables.Shares]] = {}
    for label, part in found.items():
        name = label.split(" (")[0]
        if name not in best or harmonic(part) > harmonic(best[name]):
            best[name] = part
    return tables.in_percent(best, tables.SHORT[what])


def with_the_others(place: str, table: str, kinds: list[str]) -> str:
    """A table of some models with the rows that stand there of the others, in NAMES' order."""
    new, old = table.splitlines(), tables.read(place).splitlines()
    rows = {kind: [line for line in (new if kind in kinds else old) if f"| {NAMES[kind]}: " in line] for kind in NAMES}
    return "\n".join([*new[:2], *(line for part in rows.values() for line in part)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--each", type=int, default=12, help="named and name-free pictures of each target")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for what in options.only:
        found, groups = measured(what, options.each, options.models), WHAT[what].groups
        written = {
            f"transformers: {what}": long_table(groups, found),
            f"transformers: {what}, short": short_table(what, found),
        }
        print(*written.values(), sep="\n\n", flush=True)
        if options.write:
            tables.fill({name: with_the_others(name, table, options.models) for name, table in written.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
