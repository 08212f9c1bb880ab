"""PURE's own rule (arXiv 2605.25765): bases by cumulative energy, E = I - P_F (I - P_R). In float64.

H_F, H_R are the stacked rows of the forget and the retain anchors, V_F, V_R the right-singular vectors that are kept,
tau_F, tau_R the cumulative energies kept, P = V V^T.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .basis import ChartWords, Edit, Settings
from .eigenpairs import left_directions
from .errors import PureError
from .moments import Moments

Tensor = torch.Tensor
NAME = "energy"
VALUES = "sin^2 to what is kept"  # what an Edit's `values` are
WEIGHS = SENDS = False
NOTHING = 1e-6  # mean sin^2 below which an edit changes nothing
WEAK_SHARE = 0.1  # of the forget directions; a layer that removes less hardly matters
FOLLOWS = 1e-5  # what stored factors may differ by from those that their bases give


def overlap(edit: Edit) -> float:
    """The chart's bar of a layer: the mean cos^2 between the forget directions and the retain space."""
    return 1 - float(edit.values.mean()) if edit.rank else 1.0


CHART = ChartWords(
    "Energy rule: {}",
    "singular values: forget (lines), keep (dots)",
    ranks="rank (below: kept)",
    bars="overlap (cos^2)",
    bar=overlap,
    form="{:.2f}",
    lowest=-6,
    top=1.0,
)


def edit(
    forget: Moments, retain: Moments | None, mean: Tensor | None, settings: Settings, goal: Tensor | None = None
) -> Edit:
    """The edit of one block of channels. mean: the retain mean if rows are centred by it; it is kept whole.

    Raises PureError for a goal: this rule only takes away.
    """
    if goal is not None:
        raise PureError("The rule energy cannot draw something else instead: disconnect replacement, or take contrast.")
    if retain is not None and mean is not None:
        retain = retain.minus(mean)
    empty = torch.zeros(forget.width, 0, dtype=torch.float64)
    s_f, v_f = principal_directions(forget, settings.forget_energy, settings.max_rank)
    s_r, v_r = principal_directions(retain, settings.keep_energy) if retain else (empty[0], empty)
    if mean is not None:
        v_r = add_direction(v_r, mean)
    u, m = factors(v_f, v_r)
    return Edit(u, m, v_f, v_r, s_f, s_r, m.square().sum(0), empty)


def factors(v_f: Tensor, v_r: Tensor) -> tuple[Tensor, Tensor]:
    """U, M of PURE's E = I - P_F (I - P_R): U = V_F, M = (I - P_R) V_F."""
    return v_f, v_f - v_r @ (v_r.T @ v_f)


def principal_directions(moments: Moments, tau: float, max_rank: int = 0) -> tuple[Tensor, Tensor]:
    """Singular values of the stacked rows H, falling, and V (d, r), the right-singular vectors up to the energy tau."""

    def cut(squares: Tensor, total: float) -> int:
        return energy_rank(squares.clamp(min=0).sqrt(), tau, max_rank, total)

    return left_directions(moments.factor.T, cut)


def energy_rank(s: Tensor, tau: float, max_rank: int = 0, total: float | None = None) -> int:
    """Least r with sum_{i<=r} s_i^2 >= tau sum s_i^2 (PURE: cumulative variance); max_rank 0: no cap.

    total: of all s_i^2, where s are only the leading ones.
    """
    if s.numel() == 0 or tau <= 0:
        return 0
    share = s.square().cumsum(0) / (float(s.square().sum()) if total is None else total)
    rank = min(int((share < tau - 1e-15).sum()) + 1, s.numel())
    return min(rank, max_rank) if max_rank else rank


def principal_cosines(v_f: Tensor, v_r: Tensor) -> Tensor:
    """cos(theta_i), falling, min(r_F, r_R) of them: singular values of V_F^T V_R."""
    if 0 in (v_f.shape[1], v_r.shape[1]):
        return v_f.new_zeros(0)
    cosines: Tensor = torch.linalg.svdvals(v_f.T @ v_r)
    return cosines.clamp(max=1.0)


def mean_squared_sine(v_f: Tensor, v_r: Tensor) -> float:
    """Mean sin^2(theta_i) over the r_F forget directions, |(I - P_R) V_F|^2 / r_F: the share that the edit removes."""
    if v_f.shape[1] == 0:
        return 0.0
    return float((v_f - v_r @ (v_r.T @ v_f)).square().sum() / v_f.shape[1])


def add_direction(v: Tensor, direction: Tensor) -> Tensor:
    """An orthonormal basis of span(V) and one more (d,) vector; V itself where the vector lies in it already."""
    norm = direction.norm()
    if norm == 0:
        return v
    rest = direction / norm
    for _ in range(2):  # twice is enough (Kahan)
        rest = rest - v @ (v.T @ rest)
    return torch.cat([v, (rest / rest.norm())[:, None]], 1) if rest.norm() > 1e-8 else v


def spectrum_scale(edit: Edit) -> float:
    """The chart shows singular values over the largest one, as they are stored."""
    return 1.0


def of_version_1(stored: Edit) -> Edit:
    """An edit of a file of version 1: it was stored as it is today."""
    return stored


def fault(stored: Edit) -> str | None:
    """What is wrong with an edit from a file; None where U and M follow from V_F and V_R."""
    u, m = factors(stored.v_f.double(), stored.v_r.double())
    if stored.u.shape != u.shape:
        return "the edit does not have the rank of its basis"
    if stored.rank == 0:
        return None
    error = float(max((stored.u.double() - u).abs().max(), (stored.m.double() - m).abs().max()))
    sines = (stored.values.double() - m.square().sum(0)).abs().max()
    return None if error <= FOLLOWS and float(sines) <= 10 * FOLLOWS else "the edit does not follow from its bases"


def warnings(live: Mapping[str, Edit], settings: Settings | None) -> list[str]:
    """What a person should know of a basis with these edits; raises PureError where it would change nothing."""
    removed = [float(edit.values.mean()) for edit in live.values()]
    if max(removed) < NOTHING:
        raise PureError(
            "This basis would change nothing: what is kept holds every direction of the concept. Lower keep_energy, "
            "raise forget_energy, or take near twins of the concept out of the keep list."
        )
    found = []
    if sum(share < WEAK_SHARE for share in removed) * 2 >= len(live):
        found.append(
            "In at least half of the layers less than a tenth of the concept's directions goes: lower keep_energy "
            "or raise forget_energy."
        )
    if all(edit.rank == 1 for edit in live.values()):
        found.append(
            "Rank 1 in every layer: only what all pictures share may have been found; raise forget_energy or set "
            "centering to mean of keep."
        )
    return found
