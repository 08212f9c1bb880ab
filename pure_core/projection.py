"""The edit E = I - U M^T: its factors from two bases or from contrast directions, strength and iterations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import PureError

Tensor = torch.Tensor
SIDES = ("left", "right")
RULES = ("energy", "contrast")
MAX_ITERATIONS = 4
DEFAULT_ITERATIONS = 1


@dataclass(frozen=True)
class LayerBasis:
    """The edit of one layer of width d: U, M (d, r) float32; what it came from, for reports.

    v_f, v_r: orthonormal (d, r_F), (d, r_R) float32 of the energy rule, empty (d, 0) for the contrast rule
    (block-diagonal if per head). spectrum_forget, spectrum_retain: (k,) over the largest one, singular values (energy
    rule); or ratios, and nothing (contrast rule); of wide layers only as far as a little behind the cut. values: per
    direction of the edit sin^2 of its angle to the retain space (energy rule) or its ratio (contrast rule), (r,).
    """

    heads: int
    u: Tensor
    m: Tensor
    v_f: Tensor
    v_r: Tensor
    spectrum_forget: Tensor
    spectrum_retain: Tensor
    values: Tensor

    @property
    def width(self) -> int:
        return self.u.shape[0]

    @property
    def rank(self) -> int:
        return self.u.shape[1]


@dataclass(frozen=True)
class ConceptBasis:
    """A concept's edit for every layer of a MODEL, with the settings and the capture that it was made from."""

    layers: dict[str, LayerBasis]
    rule: str
    structure: str
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def paper_factors(v_f: Tensor, v_r: Tensor) -> tuple[Tensor, Tensor]:
    """U, M of PURE's E = I - P_F (I - P_R): U = V_F, M = (I - P_R) V_F."""
    return v_f, v_f - v_r @ (v_r.T @ v_f)


def edit_matrix(u: Tensor, m: Tensor, strength: float = 1.0, iterations: int = 1) -> Tensor:
    """(d, d) I - s (I - E^n): the definition, for tests and small work; everything else uses the factors."""
    eye = torch.eye(u.shape[0], dtype=u.dtype, device=u.device)
    edit: Tensor = eye - strength * (eye - torch.linalg.matrix_power(eye - u @ m.T, iterations))
    return edit


def iterate(u: Tensor, m: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Factors of E^n = I - U C M^T with C = sum_{k<n} (I - M^T U)^k: stronger, and span(V_R) is still kept exactly."""
    if iterations not in range(1, MAX_ITERATIONS + 1):
        raise PureError(f"iterations is {iterations}, and it goes from 1 to {MAX_ITERATIONS}.")
    eye = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    step, total = eye - m.T @ u, eye
    for _ in range(iterations - 1):
        total = eye + total @ step
    return u, m @ total.T


def weight_delta(weight: Tensor, u: Tensor, m: Tensor, side: str) -> Tensor:
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
        raise PureError(f"strength is {strength}, and it goes from 0 (nothing) to 1 (the whole edit).")
