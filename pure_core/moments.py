"""Streaming, mergeable, exact moments of activation rows, per layer.

Kept is a square-root factor of the rows h with a one in front: [u R] with R^T R = sum of h h^T, u^T R = sum of h and
u^T u = n. Its singular values are those of the stacked rows themselves, so nothing is lost to squaring; rows minus any
vector m have the factor R - u m^T, so centring is exact too; and it never has more than d + 1 rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .errors import PureError

Tensor = torch.Tensor


@dataclass(frozen=True)
class Moments:
    """Moments of n rows of width d: count n, ones (k,) and factor (k, d), k <= min(n, d + 1); float64 on the CPU."""

    count: int
    ones: Tensor
    factor: Tensor

    @property
    def width(self) -> int:
        return self.factor.shape[1]

    @property
    def sum(self) -> Tensor:
        """(d,) sum of the rows."""
        return self.ones @ self.factor

    @property
    def mean(self) -> Tensor:
        """(d,) mean row; zero where there are no rows."""
        return self.sum / max(self.count, 1)

    @property
    def energy(self) -> float:
        """Sum of the squared norms of all rows."""
        return float(self.factor.square().sum())

    def second_moment(self) -> Tensor:
        """(d, d) mean of h h^T."""
        return self.factor.T @ self.factor / max(self.count, 1)

    def columns(self, start: int, stop: int) -> Moments:
        """The moments of a slice of the channels, as of one attention head."""
        return Moments(self.count, self.ones, self.factor[:, start:stop])

    def minus(self, mean: Tensor) -> Moments:
        """The moments of the rows h - mean, for any (d,) vector."""
        return Moments(self.count, self.ones, self.factor - torch.outer(self.ones, mean))


def compact(augmented: Tensor) -> Tensor:
    """A factor of the same moments with at most as many rows as columns: the triangular one of a QR decomposition."""
    return augmented if augmented.shape[0] <= augmented.shape[1] else torch.linalg.qr(augmented, mode="r").R


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of rows together, exactly."""
    if a.width != b.width:
        raise PureError(
            f"Activations of width {a.width} and {b.width} cannot be merged: capture both from the same MODEL."
        )
    stacked = compact(torch.cat([torch.cat([m.ones[:, None], m.factor], 1) for m in (a, b)]))
    return Moments(a.count + b.count, stacked[:, 0], stacked[:, 1:])


def mixed(a: Moments, b: Moments, share: float) -> Moments:
    """Moments whose mean and second moment are (1 - share) of a's plus share of b's, however many rows each has."""
    total = a.count + b.count
    weighed = [
        (weight * total / max(m.count, 1)) ** 0.5 * torch.cat([m.ones[:, None], m.factor], 1)
        for m, weight in ((a, 1 - share), (b, share))
    ]
    stacked = compact(torch.cat(weighed))
    return Moments(total, stacked[:, 0], stacked[:, 1:])


def finite(rows: Tensor) -> Tensor:
    """The rows on the CPU in float32 (in float64 if they are), which holds them exactly.

    Raises PureError on NaN and infinity.
    """
    rows = rows.detach().to("cpu", torch.promote_types(rows.dtype, torch.float32))
    if not torch.isfinite(rows).all():
        raise PureError(
            "An activation is NaN or infinite: the MODEL overflows in this precision; load it in bf16 or fp32 "
            "and capture again."
        )
    return rows


@dataclass
class MomentsFitter:
    """Takes rows as they come and holds at most 2 (d + 1) of them and one block."""

    width: int
    _blocks: list[Tensor] = field(default_factory=list)
    _held: int = 0
    _count: int = 0

    def add(self, rows: Tensor) -> None:
        """rows: (n, d), any float dtype and device; finite, else PureError."""
        rows = finite(rows)
        self._count += rows.shape[0]
        self._blocks.append(torch.cat([rows.new_ones(rows.shape[0], 1), rows], 1))
        self._held += rows.shape[0]
        if self._held > 2 * (self.width + 1):
            self._blocks = [self._compacted()]
            self._held = self._blocks[0].shape[0]

    def result(self) -> Moments:
        """The moments of all rows so far."""
        stacked = self._compacted()
        return Moments(self._count, stacked[:, 0], stacked[:, 1:])

    def _compacted(self) -> Tensor:
        return compact(torch.cat([torch.zeros(0, self.width + 1, dtype=torch.float64), *self._blocks]))


@dataclass
class RowBuffer:
    """Takes rows like a MomentsFitter, of whatever width they have, and keeps them in order.

    For measures that compare row by row.
    """

    width: int
    _blocks: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor) -> None:
        """rows: (n, d), any float dtype and device; finite, else PureError."""
        self._blocks.append(finite(rows).to(torch.float32))

    def result(self) -> Tensor:
        """(n, d) float32 rows so far."""
        return torch.cat(self._blocks) if self._blocks else torch.zeros(0, self.width)
