"""Orthonormal bases from moments: energy, rank, principal angles; and contrast directions. Everything in float64.

Symbols as in PURE (arXiv 2605.25765): H_F, H_R stacked rows of the forget and the retain anchors, V_F, V_R the kept
right-singular vectors, tau_F, tau_R the cumulative energies kept, P = V V^T.
"""
from __future__ import annotations

import torch

from .moments import Moments

Tensor = torch.Tensor
RIDGE = 0.0125  # eps of the contrast rule; of the retain rows' mean energy per live channel. Not in the paper: ours.
LITTLE = 0.05  # a contrast direction along which less than this goes is left alone: it would add rank and no erasure
ZERO = 1e-12  # singular values below this share of the largest are rounding
GRAM_ZERO = 1e-7  # the same where they come from a Gram matrix, which squares them


def spectrum(moments: Moments) -> tuple[Tensor, Tensor]:
    """Singular values s (k,) in falling order and right-singular vectors V (d, k) of the stacked rows."""
    if moments.factor.shape[0] == 0:
        return moments.factor.new_zeros(0), moments.factor.new_zeros(moments.width, 0)
    _, s, vh = torch.linalg.svd(moments.factor, full_matrices=False)
    live = s > ZERO * s[:1].clamp(min=torch.finfo(s.dtype).tiny)
    return s[live], vh[live].T


def smaller_gram(a: Tensor) -> Tensor:
    """A A^T or A^T A, the one of the cheaper side."""
    return a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a


def left_directions(a: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Squared singular values s^2 of a (d, n) matrix, falling, and the left-singular vectors (d, k) of those >= least; at least one vector where it is not zero.

    From the Gram matrix of the cheaper side, for half the work of a singular value decomposition, where its rounding
    (1e-16 of the largest s^2) leaves all that is asked for eight digits; otherwise from the decomposition.
    """
    squares, vectors = torch.linalg.eigh(smaller_gram(a))
    squares, vectors = squares.flip(0), vectors.flip(1)
    if squares.numel() == 0 or squares[0] <= 0:
        return squares[:0], a[:, :0]
    if least < GRAM_ZERO * float(squares[0]):
        vectors, s, _ = torch.linalg.svd(a, full_matrices=False)
        squares = s.square()[s > ZERO * s[0]]
    elif a.shape[0] > a.shape[1]:
        vectors = a @ vectors
    k = max(int((squares >= least).sum()), 1)
    return squares.clamp(min=0), vectors[:, :k] / vectors[:, :k].norm(dim=0)


def energy_rank(s: Tensor, tau: float, max_rank: int = 0) -> int:
    """Least r with sum_{i<=r} s_i^2 >= tau sum s_i^2 (PURE: cumulative variance); max_rank 0: no cap."""
    if s.numel() == 0 or tau <= 0:
        return 0
    share = s.square().cumsum(0) / s.square().sum()
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
    """f = ratio / (ratio + weight): what the contrast rule takes out along each direction, half of it where the ratio is the weight."""
    return ratios / (ratios + weight)


def contrast_directions(forget: Moments, retain: Moments | None, weight: float, max_rank: int = 0, ridge: float = RIDGE) -> tuple[Tensor, Tensor, Tensor]:
    """Generalised eigenvectors of (A, B): all ratios, falling, and of the first k the directions X (d, k) and B X, with X^T B X = I.

    A = second moment of the forget rows, B = second moment of the retain rows + ridge tr(B)/d I, with the d channels that
    are not always zero. Not in the paper (ours): the concept sits in directions of low energy and high contrast. The E that
    minimises mean |E h_F|^2 + weight mean |E h_R - h_R|^2 (+ ridge) is weight B (A + weight B)^-1 =
    I - B X diag(removed_share) X^T, exactly with all directions; kept are those along which at least LITTLE goes, and at
    most max_rank (0: no cap). With B = L L^T they are X = L^-T Z, for Z the left-singular vectors of L^-1 F^T, where
    F^T F = A; without a retain set B is the ridge alone, of the forget rows' mean variance.
    """
    root = forget.factor / max(forget.count, 1) ** 0.5
    spared = retain if retain is not None and retain.energy > 0 else None
    if spared is None and forget.energy == 0:
        return root.new_zeros(0), root.new_zeros(forget.width, 0), root.new_zeros(forget.width, 0)
    b = spared.second_moment() if spared else root.new_zeros(forget.width, forget.width)
    energy = b.diagonal().clone() if spared else root.square().sum(0)
    b.diagonal().add_(ridge * energy.sum() / (energy > 0).sum())
    lower = torch.linalg.cholesky(b)
    ratios, z = left_directions(torch.linalg.solve_triangular(lower, root.T, upper=False), weight * LITTLE / (1 - LITTLE))
    z = z[:, :max_rank] if max_rank else z
    return ratios, torch.linalg.solve_triangular(lower.T, z, upper=True), lower @ z
