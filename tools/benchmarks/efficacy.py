"""How well the pack's nodes erase characters of the miniature model: a table, with 95 % intervals.

    python -m benchmarks.efficacy [--split choose|test] [--rule energy|contrast] [--names NAME ...] [--without-descriptions]      (in tools/)

The edit is made by the nodes in a real ComfyUI, in this process. Pictures are drawn by the narrow U-Net from the leading
block of the edited weights (a test shows that it draws what the host draws), from prompts and seeds that no setting was
chosen on (split `test`), with the unedited model's pictures of the same prompts and seeds beside them.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cache

import inprocess

inprocess.start()  # before anything of comfy is imported

import torch
from pure_pack.nodes.apply import ApplyProjection
from pure_pack.nodes.basis import BuildBasis
from pure_pack.nodes.capture import CaptureActivations, MergeActivations
from pure_pack.nodes.host.layers import cross_attention_layers
from pure_pack.nodes.host.patches import effective_weight
from pure_pack.nodes.prompts import ConceptPrompts

from mini_sd import studio
from mini_sd.world import CHARACTERS, Creature

STEPS = 8  # of the pictures; the unedited model draws everything right from 5
SIZE = {"width": 64, "height": 64, "batch_size": 16}


def call(node, **inputs):
    """What a node returns, called as the executor does; widgets that are not given have their defaults."""
    defaults = {i.id: i.default for i in node.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    return node.PREPARE_CLASS_CLONE({}).execute(**{**defaults, **inputs})


def run(node, **inputs):
    """The outputs of a node."""
    return call(node, **inputs).result


def describe(creature: Creature) -> str:
    """What a user would write of a character beside its name, in one wording of the world's many."""
    shapes = {"circle": "round", "square": "square", "triangle": "triangular", "star": "star shaped", "heart": "heart shaped", "flower": "flower shaped"}
    parts = {"ears": "pointed ears", "antenna": "an antenna", "crown": "a crown", "hat": "a black hat", "cheeks": "red cheeks", "belly": "a white belly", "two": "two eyes", "one": "one big eye"}
    listed = [parts[p] for p in (creature.topper, creature.mark, creature.eyes) if p != "none"]
    return f"{creature.color} {shapes[creature.shape]} creature with {', '.join(listed[:-1])} and {listed[-1]}"


class Eraser:
    """Makes edits by the nodes; what several characters' edits need is captured once and merged."""

    def __init__(self, checkpoint=None, **capture):
        self.model, self.clip = (checkpoint or inprocess.load_checkpoint())[:2]
        self.settings = {**SIZE, **capture}
        self._captured: dict[tuple, object] = {}

    def capture(self, concepts: str, role: str, **inputs):
        key = (concepts, role)
        if key not in self._captured:
            prompts = run(ConceptPrompts, concepts=concepts, role=role, **inputs)[0]
            self._captured[key] = run(CaptureActivations, model=self.model, clip=self.clip, prompts=prompts, **self.settings)[0]
        return self._captured[key]

    def erase(self, name: str, described: bool = True, apply: dict | None = None, **build):
        """The MODEL without a character: forget its name (and a description), retain the seven others and the empty prompt."""
        forget = self.capture(f"{name}\n{describe(CHARACTERS[name])}" if described else name, "forget")
        retain = self.capture("", "retain")
        for other in CHARACTERS:
            if other != name:
                retain = run(MergeActivations, activations_a=retain, activations_b=self.capture(other, "retain", include_empty_prompt=False))[0]
        return run(ApplyProjection, model=self.model, basis=run(BuildBasis, forget=forget, retain=retain, **build)[0], **(apply or {}))[0]

    def narrow(self, model):
        """The narrow U-Net with a MODEL's effective keys and values."""
        parts = {"keys": "to_k", "values": "to_v"}
        return studio.unet({f"{layer.name}.{part}.weight": effective_weight(model, layer.key(p)) for layer in cross_attention_layers(model) for p, part in parts.items()})


@dataclass(frozen=True)
class Share:
    """hits of n, with its 95 % Wilson interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        z, p = 1.959964, self.value
        middle, half = p + z * z / (2 * self.n), z * (p * (1 - p) / self.n + z * z / (4 * self.n**2)) ** 0.5
        return (middle - half) / (1 + z * z / self.n), (middle + half) / (1 + z * z / self.n)

    def __str__(self) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(self.value, *self.interval)


@cache
def unedited_unet():
    return studio.unet()


_SEEN: dict[tuple[str, int, int], dict] = {}


def unedited(entries: list[dict], steps: int = STEPS) -> list[dict]:
    """What the judge sees in the unedited model's pictures; each prompt and seed is drawn once."""
    wanted = {(e["prompt"], e["seed"], steps): e for e in entries}
    missing = {key: e for key, e in wanted.items() if key not in _SEEN}
    if missing:
        _SEEN.update(zip(missing, see(unedited_unet(), list(missing.values()), steps)))
    return [_SEEN[e["prompt"], e["seed"], steps] for e in entries]


def see(unet, entries: list[dict], steps: int = STEPS) -> list[dict]:
    """What the judge sees in pictures of prompt entries."""
    return studio.look(studio.draw(unet, [e["prompt"] for e in entries], [e["seed"] for e in entries], steps=steps))


def measure(unet, name: str, split: str = "test", each: int = 200, others: int = 29, scenes: int = 200, steps: int = STEPS) -> dict[str, Share]:
    """Shares on `each` named and name-free prompts, 14 x `others` prompts of other characters, and the first `scenes` of the erased ones unedited."""
    sets = studio.prompts()[split]
    erased = {kind: sets[kind][name][:each] for kind in ("named", "name_free")}
    kept = [(other, e) for other in CHARACTERS if other != name for kind in ("named", "name_free") for e in sets[kind][other][:others]]
    out: dict[str, Share] = {}
    everything = []
    for kind, entries in erased.items():
        seen = see(unet, entries, steps)
        out[kind] = Share(sum(s["character"] == name for s in seen), len(seen))
        everything += list(zip(entries, seen))
    after, before = see(unet, [e for _, e in kept], steps), unedited([e for _, e in kept], steps)
    out["others"] = Share(sum(s["character"] == o for s, (o, _) in zip(after, kept)), len(kept))
    out["others unedited"] = Share(sum(s["character"] == o for s, (o, _) in zip(before, kept)), len(kept))
    per = [Share(sum(s["character"] == o for s, (o, _) in zip(after, kept) if o == other), 2 * others) for other in CHARACTERS if other != name]
    out["worst other"] = min(per, key=lambda s: s.value)
    original = [(e, s) for entries in erased.values() for e, s in zip(entries[: scenes // 2], unedited(entries[: scenes // 2], steps))]
    for label, pairs in (("", everything), (" unedited", original)):
        for what in ("background", "style"):
            out[what + label] = Share(sum(s[what] == e[what] for e, s in pairs), len(pairs))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("choose", "test"), default="test")
    parser.add_argument("--rule", choices=("energy", "contrast"), default="energy")
    parser.add_argument("--names", nargs="+", default=list(CHARACTERS))
    parser.add_argument("--without-descriptions", action="store_true")
    options = parser.parse_args()
    each = len(studio.prompts()[options.split]["named"]["zorbo"])
    with torch.inference_mode():
        eraser, header = Eraser(), None
        for name in options.names:
            model = eraser.erase(name, not options.without_descriptions, rule=options.rule)
            shares = measure(eraser.narrow(model), name, options.split, each)
            if header is None:
                header = list(shares)
                print("| erased | " + " | ".join(f"{h} (n {shares[h].n})" for h in header) + " |\n" + "|---" * (len(header) + 1) + "|")
            print(f"| {name} | " + " | ".join(str(shares[h]) for h in header) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
