"""What a capture knows: per attention site the moments of its rows, and of which model, prompts and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch

from .errors import PureError
from .moments import Moments, merge

Role = Literal["forget", "retain"]
LISTED: dict[Role, str] = {"forget": "forget", "retain": "keep"}  # what a person calls the list that a role is of


@dataclass(frozen=True)
class SiteShape:
    """Of one attention site: width d of its values, number of value heads, width of the text tokens that enter it."""

    width: int
    heads: int
    context: int


@dataclass(frozen=True)
class Anchors:
    """The concepts of a capture, each once, and every prompt that was sampled for them, in order."""

    concepts: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptureSettings:
    """How the prompts were sampled: rows of other settings are other data."""

    steps: int
    recorded_steps: int
    seeds: int
    seed: int
    cfg: float
    width: int
    height: int
    sampler_name: str
    scheduler: str


@dataclass(frozen=True)
class ModelIdentity:
    """Which MODEL rows were recorded on: its family, and a digest of each thing that makes its rows what they are.

    weights: the weights of its attention sites and the patches on them. patches: every other patched weight.
    sampling: prediction type and noise levels. attention: what other nodes put between or around the attention.
    clip: the text encoder. An empty digest is not known (a file of version 1) and equals any other.
    sketch: random projections of every site's value weights, which tell how far two MODELs are apart; may be empty.
    """

    family: str
    weights: str
    patches: str = ""
    sampling: str = ""
    attention: str = ""
    clip: str = ""
    sketch: tuple[float, ...] = ()


# What a difference in identity is called in a sentence.
IDENTITY = {
    "family": "the kind of model",
    "weights": "the attention weights (another fine-tune, LoRA or LoRA strength)",
    "patches": "other weights of the MODEL (a LoRA or a merge on one of them)",
    "sampling": "how the MODEL samples (a ModelSampling node on one of them)",
    "attention": "what other nodes changed in the MODEL's attention",
    "clip": "the CLIP",
}


@dataclass(frozen=True)
class Activations:
    """A capture. Per site, by its module name: moments of its rows, and the sum of each concept's rows, (k, d) float64.

    rows: how many rows each of the k concepts has at every site.
    """

    role: Role
    moments: Mapping[str, Moments]
    sums: Mapping[str, torch.Tensor]
    rows: tuple[int, ...]
    shapes: Mapping[str, SiteShape]
    anchors: Anchors
    settings: CaptureSettings
    model: ModelIdentity

    @property
    def count(self) -> int:
        """Rows per site."""
        return next(iter(self.moments.values())).count

    @property
    def nbytes(self) -> int:
        """What its numbers take, in memory and in a file."""
        moments = sum(m.factor.nbytes + m.ones.nbytes for m in self.moments.values())
        return moments + sum(total.nbytes for total in self.sums.values())


def site_difference(a: Mapping[str, SiteShape], b: Mapping[str, SiteShape], name_a: str, name_b: str) -> str | None:
    """One phrase that says how two sets of sites differ; None where they are equal."""
    if a == b:
        return None
    missing = [n for n in (*a, *b) if n not in a or n not in b]
    if missing:
        return (
            f"{name_a} has {len(a)} attention layers and {name_b} has {len(b)}; the first that only one has is "
            f"{missing[0]}"
        )
    first = next(n for n in a if a[n] != b[n])
    one, other = (f"({s.width}, {s.heads}, {s.context})" for s in (a[first], b[first]))
    return f"layer {first} is (width, heads, context) {one} in {name_a} and {other} in {name_b}"


def identity_differences(a: ModelIdentity, b: ModelIdentity) -> list[str]:
    """What two identities differ in, in words; what either does not know is not compared."""
    return [
        words
        for name, words in IDENTITY.items()
        if getattr(a, name) and getattr(b, name) and getattr(a, name) != getattr(b, name)
    ]


def weights_distance(a: ModelIdentity, b: ModelIdentity) -> float | None:
    """|W_a - W_b| / |W_a| (Frobenius) of all value weights, estimated from their random projections; None where one of
    them has none. Of n projections it is within some n^-1/2 of the true one: 4 % of it for SD 1.5's 512."""
    if not a.sketch or len(a.sketch) != len(b.sketch):
        return None
    one, other = (torch.tensor(part.sketch, dtype=torch.float64) for part in (a, b))
    return float((one - other).norm() / one.norm().clamp(min=1e-30))


def setting_differences(a: CaptureSettings, b: CaptureSettings) -> list[str]:
    """Names of the settings in which two captures differ."""
    return [f.name for f in fields(CaptureSettings) if getattr(a, f.name) != getattr(b, f.name)]


def check_same_model(a: Activations, b: Activations, name_a: str, name_b: str) -> None:
    """Raises PureError unless both captures are of one MODEL in one state."""
    difference = site_difference(a.shapes, b.shapes, name_a, name_b)
    if difference:
        raise PureError(f"These captures are of different models: {difference}. Capture both from the same MODEL.")
    differ = identity_differences(a.model, b.model)
    if differ:
        raise PureError(
            f"{name_a[0].upper()}{name_a[1:]} and {name_b} differ in {', and in '.join(differ)}. Connect the same "
            "MODEL and the same CLIP to both."
        )


def merge_activations(
    a: Activations, b: Activations, name_a: str = "activations_a", name_b: str = "activations_b"
) -> Activations:
    """Both captures as one, as if all their prompts had been captured at once; PureError where they do not fit."""
    check_same_model(a, b, name_a, name_b)
    for name in setting_differences(a.settings, b.settings):
        raise PureError(
            f"These captures differ in {name} ({getattr(a.settings, name)} and {getattr(b.settings, name)}): capture "
            "both with the same settings."
        )
    if a.role != b.role:
        raise PureError(
            f"{name_a} is to {LISTED[a.role]} and {name_b} to {LISTED[b.role]}: merge captures of one kind only."
        )
    concepts = tuple(dict.fromkeys((*a.anchors.concepts, *b.anchors.concepts)))
    rows = [0] * len(concepts)
    sums = {n: torch.zeros(len(concepts), m.width, dtype=torch.float64) for n, m in a.moments.items()}
    for part in (a, b):
        for i, concept in enumerate(part.anchors.concepts):
            at = concepts.index(concept)
            rows[at] += part.rows[i]
            for name, total in sums.items():
                total[at] += part.sums[name][i]
    return Activations(
        a.role,
        {n: merge(m, b.moments[n]) for n, m in a.moments.items()},
        sums,
        tuple(rows),
        a.shapes,
        Anchors(concepts, (*a.anchors.prompts, *b.anchors.prompts)),
        a.settings,
        a.model,
    )
