"""The algebra of the edit E = I - U M^T: applied to weights, at a strength, several times in a row."""

from __future__ import annotations

from typing import Literal

import torch

from .errors import PureError

Tensor = torch.Tensor
Side = Literal["left", "right"]
MAX_ITERATIONS = 4
DEFAULT_ITERATIONS = 1


def edit_matrix(u: Tensor, m: Tensor, strength: float = 1.0, iterations: int = 1) -> Tensor:
    """(d, d) I - s (I - E^n): the definition, for tests and small work; everything else uses the factors."""
    eye = torch.eye(u.shape[0], dtype=u.dtype, device=u.device)
    edit: Tensor = eye - strength * (eye - torch.linalg.matrix_power(eye - u @ m.T, iterations))
    return edit


def iterate(u: Tensor, m: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Factors of E^n = I - U C M^T with C = sum_{k<n} (I - M^T U)^k: stronger, and span(V_R) is still kept exactly."""
    if iterations not in range(1, MAX_ITERATIONS + 1):
        raise PureError(f"iterations must be 1 to {MAX_ITERATIONS}, not {iterations}.")
    eye = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    step, total = eye - m.T @ u, eye
    for _ in range(iterations - 1):
        total = eye + total @ step
    return u, m @ total.T


def weight_delta(weight: Tensor, u: Tensor, m: Tensor, side: Side) -> Tensor:
    """What the edit at full strength takes away.

    U (M^T W) on the left (keys, values), (W U) M^T on the right (output).
    """
    return u @ (m.T @ weight) if side == "left" else (weight @ u) @ m.T


def block_diagonal(blocks: list[Tensor]) -> Tensor:
    """(sum d_h, sum r_h) from per-head factors (d_h, r_h); heads may have different ranks, zero included."""
    return torch.block_diag(*blocks) if blocks else torch.zeros(0, 0)


def check_strength(strength: float) -> None:
    """Raises PureError unless 0 <= strength <= 1 (NaN is refused too)."""
    if not 0.0 <= strength <= 1.0:
        raise PureError(f"strength must be 0 (nothing) to 1 (the whole edit), not {strength}.")
