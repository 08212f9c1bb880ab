"""Orthonormal bases from moments: energy, rank, principal angles; and contrast directions. Everything in float64.

Symbols as in PURE (arXiv 2605.25765): H_F, H_R stacked rows of the forget and the retain anchors, V_F, V_R the kept
right-singular vectors, tau_F, tau_R the cumulative energies kept, P = V V^T.
"""

from __future__ import annotations

import torch

from .eigen import left_directions
from .moments import Moments

Tensor = torch.Tensor
RIDGE = 0.0125  # eps of the contrast rule; of the retain rows' mean energy per live channel. Not in the paper: ours.
LITTLE = 0.05  # a contrast direction along which less than this goes is left alone: it would add rank and no erasure


def principal_directions(moments: Moments, tau: float, max_rank: int = 0) -> tuple[Tensor, Tensor]:
    """Singular values of the stacked rows H, falling, as far as left_directions gives them, and V (d, r).

    The right-singular vectors up to the energy tau.
    """
    return left_directions(
        moments.factor.T, lambda squares, total: energy_rank(squares.clamp(min=0).sqrt(), tau, max_rank, total)
    )


def energy_rank(s: Tensor, tau: float, max_rank: int = 0, total: float | None = None) -> int:
    """Least r with sum_{i<=r} s_i^2 >= tau sum s_i^2 (PURE: cumulative variance); max_rank 0: no cap.

    total: of all s_i^2, where s are the leading ones.
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


def removed_share(ratios: Tensor, weight: float) -> Tensor:
    """f = ratio / (ratio + weight): what the contrast rule takes out along each direction, half of it where the ratio
    is the weight."""
    return ratios / (ratios + weight)


def contrast_rank(ratios: Tensor, weight: float, max_rank: int = 0) -> int:
    """How many directions the contrast rule keeps: those along which at least LITTLE goes, one at least.

    max_rank 0: no cap.
    """
    kept = max(int((removed_share(ratios, weight) >= LITTLE).sum()), 1)
    return min(kept, max_rank) if max_rank else kept


def contrast_directions(
    forget: Moments, retain: Moments | None, weight: float, max_rank: int = 0, ridge: float = RIDGE
) -> tuple[Tensor, Tensor, Tensor]:
    """Generalised eigenvectors of (A, B): their ratios, falling, as far as left_directions gives them, and of the first
    k the directions X (d, k) and B X, with X^T B X = I.

    A = second moment of the forget rows, B = second moment of the retain rows + ridge tr(B)/d I, with the d channels
    that are not always zero. Not in the paper (ours): the concept sits in directions of low energy and high contrast.
    The E that minimises mean |E h_F|^2 + weight mean |E h_R - h_R|^2 (+ ridge) is weight B (A + weight B)^-1 = I - B X
    diag(removed_share) X^T, exactly with all directions; kept are as many as contrast_rank says. With B = L L^T they
    are X = L^-T Z, for Z the left-singular vectors of L^-1 F^T, where F^T F = A; without a retain set B is the ridge
    alone, of the forget rows' mean variance.
    """
    root = forget.factor / max(forget.count, 1) ** 0.5
    spared = retain if retain is not None and retain.energy > 0 else None
    if spared is None and forget.energy == 0:
        return root.new_zeros(0), root.new_zeros(forget.width, 0), root.new_zeros(forget.width, 0)
    b = spared.second_moment() if spared else root.new_zeros(forget.width, forget.width)
    energy = b.diagonal().clone() if spared else root.square().sum(0)
    b.diagonal().add_(ridge * energy.sum() / (energy > 0).sum())
    lower = torch.linalg.cholesky(b)
    s, z = left_directions(
        torch.linalg.solve_triangular(lower, root.T, upper=False),
        lambda ratios, _: contrast_rank(ratios, weight, max_rank),
    )
    return s.square(), torch.linalg.solve_triangular(lower.T, z, upper=True), lower @ z
