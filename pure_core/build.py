"""From captured activations to the basis of an edit: both rules, whole layers or single heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import subspace
from .activations import SAME_TO_MERGE, Activations, layer_difference, shape_of
from .errors import PureError
from .moments import Moments
from .projection import RULES, ConceptBasis, LayerBasis, block_diagonal, paper_factors
from .prompts import fold

CENTERINGS = ("none", "retain mean")
STRUCTURES = ("whole layer", "per head")
NOTHING = 1e-6  # mean sin^2 below which an edit changes nothing
LITTLE, LOW_RATIO, HALF = 0.1, 2.0, 0.5  # below these a layer's edit is too weak to matter: a warning


@dataclass(frozen=True)
class Settings:
    """How a basis is built; see PURE_BuildBasis for what each means.

    Raises PureError on values that are not offered.
    """

    rule: str = "contrast"
    forget_energy: float = 0.9999
    retain_energy: float = 0.5
    retain_weight: float = 3.0
    centering: str = "retain mean"
    structure: str = "whole layer"
    max_rank: int = 0

    def __post_init__(self) -> None:
        for name, offered in (("rule", RULES), ("centering", CENTERINGS), ("structure", STRUCTURES)):
            if getattr(self, name) not in offered:
                raise PureError(f"{name} is {getattr(self, name)!r}, and there are only: {', '.join(offered)}.")
        for name in ("forget_energy", "retain_energy"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise PureError(f"{name} is {getattr(self, name)}, and it goes from 0 to 1.")
        if not 0.0 <= self.retain_weight < float("inf"):
            raise PureError(f"retain_weight is {self.retain_weight}, and it goes from 0 (nothing is spared) up.")
        if self.max_rank < 0:
            raise PureError(f"max_rank is {self.max_rank}: at least 0 (no cap).")


@dataclass(frozen=True)
class Block:
    """The edit of one whole layer or one head, in float64; fields as in LayerBasis."""

    u: torch.Tensor
    m: torch.Tensor
    v_f: torch.Tensor
    v_r: torch.Tensor
    spectrum_forget: torch.Tensor
    spectrum_retain: torch.Tensor
    values: torch.Tensor


def build_basis(
    forget: Activations, retain: Activations | None, settings: Settings, step: Callable[[], None] = lambda: None
) -> tuple[ConceptBasis, list[str]]:
    """The joint basis of all forget concepts, and warnings; `step` is called after each layer.

    Raises PureError where it could not do what it says.
    """
    check_roles(forget, retain)
    layers = {}
    for name, m in forget.moments.items():
        layers[name] = build_layer(m, retain.moments[name] if retain else None, forget.heads[name], settings)
        step()
    provenance = {k: v for k, v in forget.provenance.items() if k not in ("role", "concepts", "prompts")}
    for role, captured in (("forget", forget), ("retain", retain)):
        provenance[role] = (
            {k: captured.provenance[k] for k in ("concepts", "prompts", "seed", "latents") if k in captured.provenance}
            if captured
            else {"concepts": [], "prompts": []}
        )
    kept = {k: v for k, v in settings.__dict__.items() if k not in ("rule", "structure")}
    basis = ConceptBasis(layers, settings.rule, settings.structure, kept, provenance)
    return basis, check_pair(forget, retain) + find_faults(basis)


def check_roles(forget: Activations, retain: Activations | None) -> None:
    """Refuses captures that do not belong together, or a concept that is to be both forgotten and kept."""
    if forget.provenance.get("role") == "retain":
        raise PureError(
            "The capture at `forget` was made from retain prompts: swap the two, or set the role of its prompts "
            "to forget."
        )
    if retain is None:
        return
    if retain.provenance.get("role") == "forget":
        raise PureError("The capture at `retain` was made from forget prompts: set the role of its prompts to retain.")
    difference = layer_difference(shape_of(forget), shape_of(retain), "the forget capture", "the retain capture")
    if difference:
        raise PureError(f"The two captures are of different models: {difference}. Capture both from the same MODEL.")
    both = set().union(
        *(
            {fold(c) for c in forget.provenance.get(what, [])} & {fold(c) for c in retain.provenance.get(what, [])}
            for what in ("concepts", "prompts")
        )
    )
    if both:
        raise PureError(
            f"{', '.join(sorted(both))}: to be forgotten and to be retained at once, which erases nothing; take "
            "it out of one of the two lists."
        )


def check_pair(forget: Activations, retain: Activations | None) -> list[str]:
    """Warnings on two captures that were made in different ways.

    Raises PureError where they are of different weights.
    """
    if retain is None:
        return [
            (
                "There is no retain capture: everything that the forget prompts share with the rest goes too, and no "
                "mean is taken off."
            )
        ]
    differ = [k for k in SAME_TO_MERGE if forget.provenance.get(k) != retain.provenance.get(k)]
    if "fingerprint" in differ:
        raise PureError(
            "The two captures are of different weights (another fine-tune, other LoRAs, or the same at another "
            "strength): capture both from the same MODEL."
        )
    return (
        [
            (
                f"The two captures differ in {', '.join(differ)}: what they have in common is then not told from "
                "what sets them apart; capture both in the same way."
            )
        ]
        if differ
        else []
    )


def build_layer(forget: Moments, retain: Moments | None, heads: int, settings: Settings) -> LayerBasis:
    """The edit of one layer, float32; a layer or head whose forget rows have no energy gets rank 0."""
    parts = heads if settings.structure == "per head" else 1
    size = forget.width // parts
    spans = [(i * size, (i + 1) * size) for i in range(parts)]
    blocks = [build_block(forget.columns(*s), retain.columns(*s) if retain else None, settings) for s in spans]
    joined = {name: block_diagonal([getattr(b, name) for b in blocks]) for name in ("u", "m", "v_f", "v_r")}
    joined["values"] = torch.cat([b.values for b in blocks])
    for name in ("spectrum_forget", "spectrum_retain"):  # per head: of all heads together
        s = torch.cat([getattr(b, name) for b in blocks]).sort(descending=True).values
        joined[name] = s / s[0] if s.numel() else s
    return LayerBasis(heads=heads, **{k: v.to(torch.float32).contiguous() for k, v in joined.items()})


def build_block(forget: Moments, retain: Moments | None, settings: Settings) -> Block:
    """The edit of one block of channels by the chosen rule."""
    mean = (
        retain.mean if settings.centering == "retain mean" and retain and forget.energy > 0 else None
    )  # no rows of its own: nothing to erase
    f = forget if mean is None else forget.minus(mean)
    empty = torch.zeros(forget.width, 0, dtype=torch.float64)
    if settings.rule == "contrast":
        ratios, m, u = subspace.contrast_directions(
            f, retain, settings.retain_weight, settings.max_rank
        )  # B keeps the mean: touching it must cost
        values = ratios[: m.shape[1]]
        return Block(
            u * subspace.removed_share(values, settings.retain_weight), m, empty, empty, ratios, empty[0], values
        )
    r = retain if mean is None or retain is None else retain.minus(mean)
    s_f, v_f = subspace.principal_directions(f, settings.forget_energy, settings.max_rank)
    s_r, v_r = subspace.principal_directions(r, settings.retain_energy) if r else (empty[0], empty)
    if mean is not None:
        v_r = subspace.add_direction(v_r, mean)
    u, m = paper_factors(v_f, v_r)
    return Block(u, m, v_f, v_r, s_f, s_r, m.square().sum(0))


def find_faults(basis: ConceptBasis) -> list[str]:
    """Warnings on a basis; raises PureError on one that would change nothing."""
    layers, warnings = basis.layers, []
    live = {n: b for n, b in layers.items() if b.rank}
    strongest = {
        n: float((b.m * b.u).sum(0).max()) for n, b in live.items()
    }  # the largest share that goes: the diagonal of M^T U
    if not live:
        raise PureError(
            "The forget activations have no energy in any layer, so there is nothing to erase: check prompts and MODEL."
        )
    dead = [n for n in layers if n not in live]
    if dead:
        warnings.append(f"{len(dead)} of {len(layers)} layers carry no energy and stay unedited: {', '.join(dead)}.")
    strength = {n: float(b.values.mean()) for n, b in live.items()}
    if basis.rule == "energy":
        if max(strength.values()) < NOTHING:
            raise PureError(
                "This basis would change nothing: the retain basis holds every forget direction. Lower "
                "retain_energy, raise forget_energy, or take near twins out of the retain list."
            )
        if sum(v < LITTLE for v in strength.values()) * 2 >= len(live):
            warnings.append(
                "In at least half of the layers less than a tenth of the forget directions is removed: lower "
                "retain_energy or raise forget_energy."
            )
        if all(b.rank == 1 for b in live.values()):
            warnings.append(
                "Rank 1 in every layer: only the common mean may have been found; raise forget_energy or centre "
                "by the retain mean."
            )
    elif max(strongest.values()) < NOTHING:
        raise PureError(
            "This basis would change nothing: nowhere is the concept stronger in the forget rows than in the "
            "retain rows. Lower retain_weight, or take near twins out of the retain list."
        )
    elif sum(strongest[n] < HALF or float(b.values.max()) < LOW_RATIO for n, b in live.items()) * 2 >= len(live):
        warnings.append(
            "In at least half of the layers the concept's best direction is hardly stronger in the forget rows "
            "than in what is to be kept, so less than half of it goes: lower retain_weight, or take near twins "
            "out of the retain list."
        )
    return warnings


def describe_basis(basis: ConceptBasis, warnings: list[str]) -> str:
    """The report: warnings first, then what is erased, then a line per layer."""
    forget, retain = (basis.provenance.get(r, {}).get("concepts", []) for r in ("forget", "retain"))
    what = "sin^2 to retain" if basis.rule == "energy" else "ratio"
    lines = [
        *(f"Warning: {w}" for w in warnings),
        f"Erases {', '.join(forget) or '?'}; keeps {', '.join(retain) or 'nothing in particular'}.",
        f"Rule {basis.rule}, {basis.structure}, " + ", ".join(f"{k} {v}" for k, v in basis.settings.items()) + ".",
    ]
    for name, b in basis.layers.items():
        ranks = f"rank {b.rank}" + (f", retain rank {b.v_r.shape[1]}" if basis.rule == "energy" else "")
        span = f"{float(b.values.min()):.3g} to {float(b.values.max()):.3g}" if b.rank else "unedited"
        lines.append(f"{name}: width {b.width}, {ranks}, {what} {span}")
    return "\n".join(lines)
