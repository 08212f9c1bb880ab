"""What is left of a concept after an edit, and what moved of the rest, from paired rows of two models.

Not in the paper (ours): the basis that made the edit is never asked, so the measure cannot flatter it. Rows are (n, d).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .errors import PureError
from .prompts import Prompts

Tensor = torch.Tensor
ENERGY = 0.9  # share of the concept's centred energy whose directions are looked at
REMOVED, KEPT, MOVED = 0.1, 0.5, 0.1  # below, above: what the report's sentence says


@dataclass(frozen=True)
class LayerLeakage:
    """One layer: `leakage` (1 nothing changed, 0 gone), `movement` (0 nothing moved) and how many directions were
    looked at."""

    leakage: float
    movement: float
    directions: int


def split_probes(probes: Prompts) -> tuple[Prompts, Prompts]:
    """Every other prompt of each concept: to find the concept's directions with, and to measure on.

    Raises PureError on one prompt.
    """
    halves: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for i, concept in enumerate(probes.concepts):
        for j, pair in enumerate(p for p in probes.pairs if p[0] == concept):
            halves[(i + j) % 2].append(pair)
    if not all(halves):
        raise PureError(
            "One concept probe cannot be split into a half to find the concept with and a half to measure on: "
            "give at least two prompts."
        )
    return Prompts(probes.role, tuple(halves[0])), Prompts(probes.role, tuple(halves[1]))


def concept_directions(concept: Tensor, retain_mean: Tensor, energy: float = ENERGY) -> Tensor:
    """(d, k) the fewest top right-singular vectors of the concept's rows minus the retain mean that hold this share of
    their energy."""
    _, s, vh = torch.linalg.svd(concept.double() - retain_mean.double(), full_matrices=False)
    share = s.square().cumsum(0) / s.square().sum().clamp(min=torch.finfo(s.dtype).tiny)
    kept: Tensor = vh[: min(int((share < energy).sum()) + 1, len(s))]
    return kept.T


def leakage(before: Tensor, after: Tensor, directions: Tensor, retain_mean: Tensor) -> float:
    """Centred energy of the edited rows in the directions over that of the original rows: 1 nothing changed, 0 gone."""
    left, whole = (((rows.double() - retain_mean.double()) @ directions).square().sum() for rows in (after, before))
    return float(left / whole) if whole > 0 else 1.0


def movement(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before| in the Frobenius norm: how far rows that should stay have moved."""
    before = before.double()
    return float((after.double() - before).norm() / before.norm().clamp(min=torch.finfo(torch.float64).tiny))


def measure(
    found: dict[str, Tensor],
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    retain_before: dict[str, Tensor],
    retain_after: dict[str, Tensor],
) -> dict[str, LayerLeakage]:
    """Per layer, from rows of the original MODEL (found, before, retain_before) and of the edited one on the same
    latents."""
    out = {}
    for name in before:
        mean = retain_before[name].double().mean(0)
        directions = concept_directions(found[name], mean)
        out[name] = LayerLeakage(
            leakage(before[name], after[name], directions, mean),
            movement(retain_before[name], retain_after[name]),
            directions.shape[1],
        )
    return out


def summary(layers: dict[str, LayerLeakage]) -> tuple[float, float]:
    """Mean leakage and mean movement over the layers."""
    return sum(v.leakage for v in layers.values()) / len(layers), sum(v.movement for v in layers.values()) / len(layers)


def describe_leakage(layers: dict[str, LayerLeakage], concepts: tuple[str, ...], retained: tuple[str, ...]) -> str:
    """The report: one sentence to act on, then a line per layer."""
    left, moved = summary(layers)
    if left == 1.0 and moved == 0.0:
        verdict = "the two MODELs render the same: there is no edit between them."
    elif left > KEPT:
        verdict = (
            "most of the concept is still rendered: erase more (lower retain_weight, or with the energy rule "
            "retain_energy; add descriptions to the forget prompts)."
        )
    elif left > REMOVED:
        verdict = (
            "between the two this number cannot tell: look at pictures, and compare it with other settings on this "
            "MODEL."
        )
    else:
        verdict = "little of the concept is rendered."
    if moved > MOVED:
        verdict += " The retained concepts moved a lot: retain more, or erase less."
    lines = [
        f"Leakage {left:.3f} (1: nothing erased, 0: gone); retained activations moved by {moved:.3f} (0: not at all).",
        f"On probes the measure was not fitted on, {verdict}",
        f"Concept: {', '.join(concepts)}. Retained: {', '.join(retained)}.",
    ]
    lines += [
        f"{name}: leakage {v.leakage:.3f} in {v.directions} directions, moved {v.movement:.3f}"
        for name, v in layers.items()
    ]
    return "\n".join(lines)


def as_numbers(layers: dict[str, LayerLeakage]) -> dict[str, Any]:
    """The same for programs: leakage and movement (means over layers), and every layer's own."""
    left, moved = summary(layers)
    return {"leakage": left, "movement": moved, "layers": {name: asdict(v) for name, v in layers.items()}}
