"""What is left of a concept after an edit, and what moved of the rest, from paired rows of two models.

Not in the paper (our choice): the basis that made the edit is never asked, so the measure cannot flatter it. Rows are
(n, d), the same prompts and noised latents in the same order for both models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .errors import PureError
from .prompts import Prompts

Tensor = torch.Tensor
REMOVED, KEPT, MOVED = 0.1, 0.5, 0.1  # below, above: what the report's sentence says
AGREE = 0.3  # cosine between what the two halves of a concept's probes add, from which they show one thing


@dataclass(frozen=True)
class SiteLeakage:
    """One site: `leakage` (1 nothing changed, 0 gone) and `movement` (0 nothing moved)."""

    leakage: float
    movement: float


@dataclass(frozen=True)
class Measured:
    """Per site; and per concept what is left of it and how far the two halves of its probes agree: means over sites."""

    sites: Mapping[str, SiteLeakage]
    concepts: Mapping[str, float]
    agreement: Mapping[str, float]

    @property
    def leakage(self) -> float:
        """Mean over the sites, every concept counting alike."""
        return sum(v.leakage for v in self.sites.values()) / len(self.sites)

    @property
    def movement(self) -> float:
        """Mean over the sites."""
        return sum(v.movement for v in self.sites.values()) / len(self.sites)


def halves_of(probes: Prompts) -> dict[str, int]:
    """Prompt -> 0 or 1: the half of its concept's probes that it belongs to, whatever the order in which they came.

    Raises PureError on a concept of one prompt.
    """
    halves = {}
    for concept in probes.concepts:
        texts = sorted({text for name, text in probes.pairs if name == concept})
        if len(texts) < 2:
            raise PureError(
                f"{concept!r} has one probe only: half of a concept's probes find where it shows, the other half is "
                "measured. Give it two prompts or more."
            )
        halves.update({text: i % 2 for i, text in enumerate(texts)})
    return halves


def leakage(found: Tensor, before: Tensor, after: Tensor, mean_before: Tensor, mean_after: Tensor) -> float:
    """What is left of what a concept adds to what is kept: 1 unchanged, 0 gone, below 0 reversed.

    <after - mean_after, c> / <before - mean_before, c> with c = found - mean_before: found and before are the concept's
    mean rows by one and the other half of its probes, so that what is only in one of them does not count; after is the
    edited model's for those of before; mean_before and mean_after are the mean rows of what is kept, each model's own,
    so that a model that renders nothing reads 0. All are (d,). 1 where the halves have nothing in common.
    """
    direction = found - mean_before
    whole = float((before - mean_before) @ direction)
    return float((after - mean_after) @ direction) / whole if whole > 0 else 1.0


def movement(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before| in the Frobenius norm: how far rows that should stay have moved."""
    before = before.double()
    return float((after.double() - before).norm() / before.norm().clamp(min=torch.finfo(torch.float64).tiny))


def measure(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    labels: Sequence[tuple[str, int]],
    retain_before: Mapping[str, Tensor],
    retain_after: Mapping[str, Tensor],
) -> Measured:
    """What is left and what moved, per site and concept. labels: (concept, half) of each concept row."""
    concepts = list(dict.fromkeys(concept for concept, _ in labels))
    chosen = {label: torch.tensor([own == label for own in labels]) for label in dict.fromkeys(labels)}
    left: dict[str, dict[str, float]] = {}
    agreed: dict[str, list[float]] = {concept: [] for concept in concepts}
    for name in before:
        kept = [rows[name].double().mean(0) for rows in (retain_before, retain_after)]
        mean = {
            (model, label): rows[name][own].double().mean(0)
            for model, rows in enumerate((before, after))
            for label, own in chosen.items()
        }
        left[name] = {}
        for concept in concepts:
            halves = [(concept, 0), (concept, 1)]
            pairs = zip(halves, halves[::-1], strict=True)
            values = [leakage(mean[0, a], mean[0, b], mean[1, b], *kept) for a, b in pairs]
            left[name][concept] = sum(values) / 2
            a, b = (mean[0, half] - kept[0] for half in halves)
            agreed[concept].append(float(torch.nn.functional.cosine_similarity(a, b, dim=0)))
    sites = {
        name: SiteLeakage(sum(values.values()) / len(values), movement(retain_before[name], retain_after[name]))
        for name, values in left.items()
    }
    return Measured(
        sites,
        {concept: sum(values[concept] for values in left.values()) / len(left) for concept in concepts},
        {concept: sum(values) / len(values) for concept, values in agreed.items()},
    )


def describe_leakage(measured: Measured, retained: Sequence[str]) -> tuple[str, list[str]]:
    """The report, one sentence to act on first, and the warnings in it."""
    left, moved = measured.leakage, measured.movement
    if left == 1.0 and moved == 0.0:
        verdict = "Both MODELs render the same: there is no edit between them."
    elif left > KEPT:
        verdict = "Most of the concept is still rendered. Erase more: lower keep_weight, or describe it in more words."
    elif left > REMOVED:
        verdict = "Some of the concept is still rendered; whether it shows, only pictures tell. Look at some."
    else:
        verdict = "Little of the concept is rendered."
    if moved > MOVED:
        verdict += " What should stay moved a lot: list more to keep, or erase less."
    warnings = [
        f"The probes of {concept!r} do not agree ({agreement:.2f} of 1). Give it more probes, all of which show it."
        for concept, agreement in measured.agreement.items()
        if agreement < AGREE
    ]
    lines = [
        *(f"Warning: {w}" for w in warnings),
        verdict,
        f"Left of the concept: {left:.3f} (1: all, 0: nothing). What is kept moved by {moved:.3f} (0: not at all).",
        *(f"{concept}: {value:.3f} left" for concept, value in measured.concepts.items()),
        f"Kept: {', '.join(retained)}.",
        *(f"{name}: {v.leakage:.3f} left, kept moved {v.movement:.3f}" for name, v in measured.sites.items()),
    ]
    return "\n".join(lines), warnings


def as_numbers(measured: Measured) -> dict[str, Any]:
    """The same for programs: leakage and movement (means over sites), and each concept's and site's own."""
    return {
        "leakage": measured.leakage,
        "movement": measured.movement,
        "concepts": dict(measured.concepts),
        "layers": {name: asdict(v) for name, v in measured.sites.items()},
    }
