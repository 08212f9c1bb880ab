"""The default rule: least squares between erasing the forget rows and keeping the retain rows. In float64.

Not in the paper (our choice): the concept sits in directions of low energy and high contrast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from .basis import ChartWords, Edit, Settings
from .eigenpairs import left_directions
from .errors import PureError
from .moments import Moments

Tensor = torch.Tensor
NAME = "contrast"
VALUES = "times stronger than in what is kept"  # what an Edit's `values` are
RIDGE = 0.002  # eps; of the retain rows' mean energy per live channel
NEGLIGIBLE_SHARE = 0.05  # a direction along which less goes is left alone: it would add rank and no erasure
LARGEST_RATIO = 1e30  # beyond it a ratio is division by nothing
NOTHING = 1e-6  # share below which an edit changes nothing
WEIGHS = SENDS = True
CHART = ChartWords(
    "How clearly it stands out: {}",
    "How many times stronger in forget than in keep (a line for each layer)",
    times=" x",
    parts="its traits, clearest first",
)
HALF, LOW_RATIO = 0.5, 2.0  # below these a layer's edit is too weak to matter
FOLLOWS = 1e-5  # what a stored M^T U may differ by from what its ratios give
LONGEST = 3e3  # columns of U: (d / RIDGE)^1/2 bounds how oblique B can make them, 800 at d = 1280
# Columns of the refill: as oblique, times at most 1 / (2 RIDGE^1/2) of a direction's share, 11, times the goal's
# distance over a kept row's usual length, which is within 10.
LONGEST_REFILL = 1e5


def edit(
    forget: Moments, retain: Moments | None, mean: Tensor | None, settings: Settings, goal: Tensor | None = None
) -> Edit:
    """The edit of one block of channels. B keeps the retain mean also where the forget rows are centred by it.

    goal: (d,) row that forget rows are sent to instead of to that mean.
    """
    empty = torch.zeros(forget.width, 0, dtype=torch.float64)
    ratios, x, bx = contrast_directions(forget, retain, settings.keep_weight, settings.max_rank)
    values = ratios[: x.shape[1]]
    length = x.norm(dim=0)  # M gets unit columns: float32 then holds both factors, and a file can be told from one in
    u, m = bx * (removed_share(values, settings.keep_weight) * length), x / length  # which they are swapped
    r = empty
    if goal is not None:
        away = goal if mean is None else goal - mean
        r = torch.outer(away, length * refill_share(values, settings.keep_weight, x.T @ forget.mean))
    return Edit(u, m, empty, empty, ratios, empty[0], values, r)


def removed_share(ratios: Tensor, weight: float) -> Tensor:
    """f = ratio / (ratio + weight): what goes along each direction, half of it where the ratio is the weight."""
    return ratios / (ratios + weight)


def refill_share(ratios: Tensor, weight: float, mean: Tensor) -> Tensor:
    """c = mean / (ratio + weight): how much of the way to a goal g each direction X of a row brings, (r,).

    A weight below RIDGE counts as RIDGE: without any, a direction that is hardly there would bring all of the way.

    mean: X^T f, of the mean forget row f. The E that minimises mean |E h_F - g|^2 + weight mean |E h_R - h_R|^2 is

        (weight B + g f^T) (A + weight B)^-1 = weight B (A + weight B)^-1 + g (X c)^T.

    Not in the paper; UCE's guide concept (Gandikota et al., 2024) is the same idea for text embeddings.
    """
    return mean / (ratios + max(weight, RIDGE))


def contrast_rank(ratios: Tensor, weight: float, max_rank: int = 0) -> int:
    """How many directions are kept, at least one: along which NEGLIGIBLE_SHARE or more goes; max_rank 0: no cap."""
    kept = max(int((removed_share(ratios, weight) >= NEGLIGIBLE_SHARE).sum()), 1)
    return min(kept, max_rank) if max_rank else kept


def contrast_directions(
    forget: Moments, retain: Moments | None, weight: float, max_rank: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Generalised eigenvectors of (A, B): ratios, falling; and of the first k the directions X (d, k) and B X.

    A = second moment of the forget rows, B = second moment of the retain rows + RIDGE tr(B)/d I, with the d channels
    that are not always zero; X^T B X = I. The E that minimises mean |E h_F|^2 + weight mean |E h_R - h_R|^2 (+ ridge)
    is

        weight B (A + weight B)^-1 = I - B X diag(removed_share) X^T,

    exactly so with all directions; as many are kept as contrast_rank says. With B = L L^T they are X = L^-T Z, for Z
    the left-singular vectors of L^-1 F^T, where F^T F = A (whitened). Without a retain set B is the ridge alone, of
    the forget rows' mean variance.
    """
    if forget.energy == 0 and (retain is None or retain.energy == 0):
        empty = torch.zeros(forget.width, 0, dtype=torch.float64)
        return empty[0], empty, empty
    lower, white = whitened(forget, retain)

    def cut(ratios: Tensor, total: float) -> int:
        return contrast_rank(ratios, weight, max_rank)

    s, z = left_directions(white, cut)
    ratios = s.square().clamp(max=LARGEST_RATIO)
    return ratios, torch.linalg.solve_triangular(lower.T, z, upper=True), lower @ z


def whitened(forget: Moments, retain: Moments | None) -> tuple[Tensor, Tensor]:
    """L (d, d) with B = L L^T, and L^-1 F^T (d, k): the forget rows where B is the identity."""
    root = forget.factor / max(forget.count, 1) ** 0.5
    spared = retain if retain is not None and retain.energy > 0 else None
    b = spared.second_moment() if spared else root.new_zeros(forget.width, forget.width)
    energy = b.diagonal().clone() if spared else root.square().sum(0)
    b.diagonal().add_(RIDGE * energy.sum() / (energy > 0).sum())
    lower = torch.linalg.cholesky(b)
    return lower, torch.linalg.solve_triangular(lower, root.T, upper=False)


def spectrum_scale(edit: Edit) -> float:
    """What the values of a stored spectrum, which are over their largest, are to be multiplied by for the chart."""
    return (float(edit.values.max()) if edit.rank else 0.0) or 1.0


def of_version_1(stored: Edit) -> Edit:
    """An edit of a file of version 1, where M did not have unit columns."""
    if not stored.rank:
        return stored
    length = stored.m.double().norm(dim=0)
    return replace(stored, u=(stored.u.double() * length).float(), m=(stored.m.double() / length).float())


def fault(stored: Edit) -> str | None:
    """What is wrong with an edit from a file; None where M^T U is diag(ratio / (ratio + weight)) with one weight >= 0.

    The direction of the lowest ratio tells the weight (a file need not say it). M has unit columns, and no column of U
    is longer than an edit of real activations can make it. Written so that NaN is a fault.
    """
    if stored.rank == 0:
        return None
    u, m, values = stored.u.double(), stored.m.double(), stored.values.double()
    if not (values > 0).all():
        return "its ratios are not all positive"
    if not ((m.norm(dim=0) - 1).abs() <= FOLLOWS).all():
        return "M does not have unit columns"
    if not (u.norm(dim=0) <= LONGEST).all():
        return "the edit is larger than any erasure"
    product, lowest = m.T @ u, int(values.argmin())
    share = float(product[lowest, lowest])
    if not 0 < share < 1 + FOLLOWS:
        return "the edit does not follow from its ratios"
    weight = max(float(values[lowest] * (1 / share - 1)), 0.0)
    error = (product - torch.diag(removed_share(values, weight))).abs()
    followed = bool((error <= FOLLOWS * u.norm(dim=0).clamp(min=1)).all())
    return None if followed else "the edit does not follow from its ratios"


def warnings(live: Mapping[str, Edit], settings: Settings | None) -> list[str]:
    """What a person should know of a basis with these edits; raises PureError where it would change nothing."""
    weight = f"keep_weight is {settings.keep_weight:g}" if settings else "keep_weight was high"
    best = max(float(edit.values.max()) for edit in live.values())
    twins = best < LOW_RATIO
    if twins:
        advice = "Take near twins of the concept out of the keep list, or lower keep_weight."
    else:
        advice = (
            f"The concept is at most {best:,.0f} times stronger in what you forget than in what you keep, and "
            f"{weight}: lower it."
        )
    if max(edit.strongest for edit in live.values()) < NOTHING:
        raise PureError(f"This basis would change nothing. {advice}")
    weak = sum(edit.strongest < HALF or float(edit.values.max()) < LOW_RATIO for edit in live.values())
    if weak * 2 >= len(live):
        return [f"In at least half of the layers less than half of the concept goes. {advice}"]
    return []
