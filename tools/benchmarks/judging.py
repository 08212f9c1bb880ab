"""Pictures of an edited narrow U-Net, judged beside the unedited one's: shares with intervals.

Knows nothing of how an edit is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from scipy.stats import binomtest

from mini_sd import studio
from mini_sd.world import CHARACTERS, STYLES

STEPS = 6  # of the pictures; the unedited model draws everything right from 5
Weights = dict[str, torch.Tensor]  # of the narrow U-Net, those that an edit changed


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
        low, high = binomtest(self.hits, self.n).proportion_ci(method="wilson")
        return float(low), float(high)

    def __add__(self, other: Share) -> Share:
        return Share(self.hits + other.hits, self.n + other.n)

    def __str__(self) -> str:
        return "{:.3f} [{:.3f}, {:.3f}] /{}".format(self.value, *self.interval, self.n)


@cache
def unedited() -> torch.nn.Module:
    return studio.unet()


_BEFORE: dict[tuple[str, int, int], tuple[torch.Tensor, dict]] = {}


def judged(pictures: torch.Tensor) -> list[dict]:
    """Everything that both judges see, and how far the autoencoder's redrawing of each picture is from it (root mean
    square)."""
    with torch.inference_mode():
        again = studio.vae_decoder()(studio.vae_encoder()(pictures))
    rebuilt = (again - pictures).square().mean((1, 2, 3)).sqrt().tolist()
    return [
        {**look, **parts, "rebuilt": r}
        for look, parts, r in zip(studio.look(pictures), studio.examine(pictures), rebuilt, strict=True)
    ]


def before(entries: list[dict], steps: int = STEPS) -> list[tuple[torch.Tensor, dict]]:
    """The unedited model's picture of each prompt and seed, and what is seen in it; each is drawn once."""

    def key(e):
        return (e["prompt"], e["seed"], steps)

    missing = list({key(e): e for e in entries if key(e) not in _BEFORE}.values())
    if missing:
        pictures = studio.draw(unedited(), [e["prompt"] for e in missing], [e["seed"] for e in missing], steps=steps)
        _BEFORE.update(zip(map(key, missing), zip(pictures, judged(pictures), strict=True), strict=True))
    return [_BEFORE[key(e)] for e in entries]


def see(
    weights: Weights | None, entries: list[dict], negative: str = "", steps: int = STEPS, beside: bool = True
) -> list[dict]:
    """Per entry what is seen `after` and (beside) `before` the edit, and the root mean square distance of the two
    pictures."""
    pictures = studio.draw(
        studio.unet(weights),
        [e["prompt"] for e in entries],
        [e["seed"] for e in entries],
        steps=steps,
        negative=negative,
    )
    if not beside:
        return [{**entry, "after": seen} for entry, seen in zip(entries, judged(pictures), strict=True)]
    return [
        {**entry, "after": seen, "before": was, "distance": float((picture - original).square().mean().sqrt())}
        for entry, picture, seen, (original, was) in zip(
            entries, pictures, judged(pictures), before(entries, steps), strict=True
        )
    ]


def character_entries(name: str, split: str, each: int, others: int, sharing: int, shapes: int) -> list[dict]:
    """What a character's edit is judged on: prompts with their seeds, `group` and what is `wanted` of the picture."""
    sets = studio.prompts()[split]
    out = [{**e, "group": kind, "wanted": name} for kind in ("named", "name_free") for e in sets[kind][name][:each]]
    out += [
        {**e, "group": f"others {kind}", "wanted": o}
        for o in CHARACTERS
        if o != name
        for kind in ("named", "name_free")
        for e in sets[kind][o][:others]
    ]
    out += [{**e, "group": f"sharing {k}"} for k in "123" for e in sets["sharing"][name][k][:sharing]]
    out += [
        {**e, "group": "styles", "wanted": s}
        for s in STYLES
        if s != "none"
        for e in sets["style_named"][s][: shapes // 3]
    ]
    return out + [{**e, "group": "shapes"} for e in sets["shapes"][:shapes]]


def style_entries(name: str, split: str, each: int, others: int, shapes: int) -> list[dict]:
    """The same for an artist's style."""
    sets = studio.prompts()[split]
    out = [
        {**e, "group": kind, "wanted": name}
        for kind in ("named", "name_free")
        for e in sets[f"style_{kind}"][name][:each]
    ]
    out += [
        {**e, "group": f"others {kind}", "wanted": o}
        for o in STYLES
        if o not in ("none", name)
        for kind in ("named", "name_free")
        for e in sets[f"style_{kind}"][o][:others]
    ]
    out += [{**e, "group": "characters", "wanted": c} for c in CHARACTERS for e in sets["named"][c][: others // 4]]
    return out + [{**e, "group": "shapes"} for e in sets["shapes"][:shapes]]


def kept_parts(entry: dict) -> bool:
    """Whether an unnamed creature has all the attributes that it had before."""
    return all(entry["after"][k] == entry["before"][k] for k in studio.ATTRIBUTES)


def right(entry: dict, when: str = "after") -> bool:
    """Whether the picture of an entry shows what its group is about."""
    seen, group = entry[when], entry["group"]
    if group.startswith("sharing"):
        return when == "before" or kept_parts(entry)
    if group == "shapes":
        return seen["kind"] == "shapes" and seen["shape"] == entry["shape"] and seen["color"] == entry["color"]
    return entry["wanted"] in (seen["character"], seen["style"])


def shares(seen: list[dict], when: str = "after") -> dict[str, Share]:
    """Group -> share of pictures that show what the group is about; others together.

    Background and style on the erased prompts.
    """
    out: dict[str, Share] = {}

    def add(key, hit):
        return out.__setitem__(key, out.get(key, Share(0, 0)) + Share(int(hit), 1))

    for entry in seen:
        add(entry["group"], right(entry, when))
        if entry["group"].startswith("others"):
            add("others", right(entry, when))
            add(f"other {entry['wanted']}", right(entry, when))
        if entry["group"] in ("named", "name_free"):
            add("background", entry[when]["background"] == entry["background"])
            if entry["wanted"] in CHARACTERS:
                add("style", entry[when]["style"] == entry["style"])
    return out


def distinct(seen: list[dict]) -> list[dict]:
    """Each prompt and seed once: the unedited model draws the same picture for every target."""
    return list({(e["prompt"], e["seed"], e["group"].partition(" ")[0]): e for e in seen}.values())


def resampled(groups: list[list[int]], draws: int = 2000) -> tuple[float, float, float]:
    """Mean of all numbers with its 95 % interval by drawing whole groups again (bootstrap)."""
    sums, counts = (torch.tensor([float(f(g)) for g in groups]) for f in (sum, len))
    pick = torch.randint(len(sums), (draws, len(sums)), generator=torch.Generator().manual_seed(0))
    low, high = (sums[pick].sum(1) / counts[pick].sum(1)).quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(sums.sum() / counts.sum()), low, high


def difference(seen: list[dict], group: str) -> tuple[float, float, float]:
    """Share right after minus share right before on the same prompts and seeds, and its interval.

    Pictures of one prompt, after edits for several targets, do not count as independent.
    """
    by_prompt: dict[str, list[int]] = {}
    for e in seen:
        if e["group"].startswith(group):
            by_prompt.setdefault(e["prompt"], []).append(right(e) - right(e, "before"))
    return resampled(list(by_prompt.values()))


def worst_other(share: dict[str, Share]) -> Share:
    """The lowest of the other concepts' own shares."""
    return min((v for k, v in share.items() if k.startswith("other ")), key=lambda v: v.value)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def harmonic(share: dict[str, Share]) -> float:
    """Harmonic mean of all that is asked of an eraser: the concept gone from named, name-free and (where measured)
    attack prompts; others, plain shapes and, where measured, characters and unnamed things that share one attribute
    retained; and pictures of erased prompts still as asked otherwise (background; style of a character's).
    """
    parts = [1 - share[k].value for k in ("named", "name_free", "soup") if k in share]
    parts += [share[k].value for k in ("others", "shapes", "characters", "sharing 1") if k in share]
    parts.append(mean([share[k].value for k in ("background", "style") if k in share]))
    return 0.0 if min(parts) <= 0 else len(parts) / sum(1 / p for p in parts)
