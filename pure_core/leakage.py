"""What is left of a concept after an edit, and what moved of the rest. Rows are (n, d); any float dtype."""
from __future__ import annotations

import torch

from .moments import Moments

Tensor = torch.Tensor


def concept_directions(concept: Tensor, retain_mean: Tensor, k: int) -> Tensor:
    """(d, <= k) top right-singular vectors of the concept's rows minus the retain mean: where the concept shows."""
    _, _, vh = torch.linalg.svd((concept - retain_mean).double(), full_matrices=False)
    return vh[:k].T


def leakage(before: Tensor, after: Tensor, directions: Tensor, retain_mean: Tensor) -> float:
    """Centred energy of the edited rows in the directions over that of the original rows: 1 nothing changed, 0 gone."""
    left, whole = (((rows.double() - retain_mean.double()) @ directions).square().sum() for rows in (after, before))
    return float(left / whole) if whole > 0 else 1.0


def movement(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before| in the Frobenius norm: how far rows that should stay have moved."""
    before = before.double()
    return float((after.double() - before).norm() / before.norm().clamp(min=torch.finfo(torch.float64).tiny))


def residual_energy(moments: Moments, u: Tensor, m: Tensor) -> float:
    """|H E^T|^2 / |H|^2 of captured rows under E = I - U M^T: 1 untouched, 0 erased."""
    if moments.energy == 0:
        return 0.0
    u, m = u.double(), m.double()
    return float((moments.factor - (moments.factor @ m) @ u.T).square().sum() / moments.energy)
