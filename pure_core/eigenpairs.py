"""The leading eigenpairs of a Gram matrix, as many as a cut asks for, and the directions of a matrix from them.

All in float64; two runs are equal bit by bit.

An edit needs a few dozen of a layer's thousand directions. A whole eigendecomposition spends nearly all of its time on
the others, so the leading ones are found by ARPACK, which every ComfyUI has with SciPy, and proved to be the leading
ones; a whole decomposition is made only where that does not work out. Beside torch.lobpcg and the whole decomposition
in docs/tables/performance.md (`nox -s speed -- --only eigensolvers`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, eigsh

Tensor = torch.Tensor
# Leading eigenvalues, falling, and the sum of all -> how many are kept; as many as it was given where the cut may lie
# behind them.
Cut = Callable[[Tensor, float], int]

FIRST = 32  # pairs that are asked for at first, then twice as many
DENSE_SIZE = 192  # up to this size a whole decomposition is as fast
MAX_SHARE = 0.2  # of the size, up to which pairs are asked for before the whole decomposition is the faster one
RESIDUAL_TOLERANCE = 1e-13  # residual of a pair, of the largest eigenvalue
# Of the largest eigenvalue: the last pair may be below one that was missed by so much, which is well above what a
# Cholesky factor is rounded by.
CERTIFICATE_TOLERANCE = 1e-11
ZERO = 1e-12  # singular values below this share of the largest are rounding
GRAM_ZERO = 1e-7  # the same from a Gram matrix, which squares them; squared ones above it keep eight digits


def smaller_gram(a: Tensor) -> Tensor:
    """A A^T or A^T A, the one of the cheaper side."""
    return a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a


def whole_pairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues (n,), falling, and eigenvectors (n, n) of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)


def leading_pairs(gram: Tensor, cut: Cut) -> tuple[Tensor, Tensor] | None:
    """The leading eigenvalues of a positive semidefinite matrix, some more than the cut keeps, and eigenvectors of
    those that it keeps and of the next; None where they are too many, or not proved.

    By ARPACK's implicitly restarted Lanczos method. A pair counts when |G y - theta y| <= RESIDUAL_TOLERANCE theta_1.
    That none was missed is proved: theta I - (G - Y diag(theta) Y^T), with theta CERTIFICATE_TOLERANCE theta_1 above
    the last of them, has a Cholesky factor.
    """
    n, total = gram.shape[0], float(gram.trace())
    start, asked = np.random.default_rng(0).standard_normal(n), FIRST
    while asked <= MAX_SHARE * n:
        try:
            values, y = (torch.from_numpy(np.flip(a, -1).copy()) for a in eigsh(gram.numpy(), asked, v0=start))
        except ArpackError:  # it did not converge
            return None
        k = cut(values, total) + 1
        if k <= asked:
            theta, y = values[:k], y[:, :k]
            exact = bool((gram @ y - y * theta).norm(dim=0).max() <= RESIDUAL_TOLERANCE * theta[0])
            return (values, y) if exact and is_all_above(gram, theta, y) else None
        asked *= 2
    return None


def is_all_above(gram: Tensor, theta: Tensor, y: Tensor) -> bool:
    """Whether theta (k,), falling, with the eigenvectors y (n, k), are all the leading eigenvalues of the matrix.

    No other one is above the last of them by more than CERTIFICATE_TOLERANCE of the largest.
    """
    rest = (y * theta) @ y.T - gram
    rest.diagonal().add_(theta[-1] + CERTIFICATE_TOLERANCE * theta[0])
    return int(torch.linalg.cholesky_ex(rest).info) == 0


def left_directions(a: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Singular values s of a (d, n) matrix, falling, and the left-singular vectors (d, k) of those that the cut of s^2
    keeps.

    Of a large matrix the values end soon after the cut. From the Gram matrix of the cheaper side, where its rounding
    (1e-16 of the largest s^2) leaves all that is kept eight digits; otherwise from a singular value decomposition.
    """
    gram = smaller_gram(a)
    total = float(gram.trace())
    if not total > 0:
        return a.new_zeros(0), a[:, :0]
    pairs = leading_pairs(gram, cut) if gram.shape[0] > DENSE_SIZE else None
    squares, vectors = pairs or whole_pairs(gram)
    k = cut(squares, total)
    if k and squares[k - 1] < GRAM_ZERO * squares[0]:
        vectors, s, _ = torch.linalg.svd(a, full_matrices=False)
        s = s[s > ZERO * s[0]]
        k = cut(s.square(), float(s.square().sum()))
    else:
        s = squares[squares > GRAM_ZERO**2 * squares[0]].sqrt()
        vectors = a @ vectors[:, :k] if a.shape[0] > a.shape[1] else vectors
    return s, vectors[:, :k] / vectors[:, :k].norm(dim=0)
