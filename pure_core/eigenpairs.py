"""The leading eigenpairs of a Gram matrix, as many as a cut asks for, and the directions of a matrix from them.

All in float64; two runs are equal bit by bit.

An edit needs a few dozen of a layer's thousand directions. A whole eigendecomposition spends nearly all of its time on
the others, so the leading ones are found in a block Krylov space (Golub and Underwood 1977; Musco and Musco 2015),
proved to be the leading ones, and a whole decomposition is made only where that does not work out soon.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor
# Leading eigenvalues, falling, and the sum of all -> how many are kept; as many as it was given where the cut may lie
# behind them.
Cut = Callable[[Tensor, float], int]

BLOCK, STRIDE = 16, 4  # vectors that the Krylov space grows by, and how often between two looks
DENSE_SIZE = 256  # up to this size a whole decomposition is as fast
MAX_SUBSPACE = 0.35  # share of the size up to which the space grows before the whole decomposition is the faster one
RESIDUAL_TOLERANCE = 1e-14  # residual of a pair, of the largest eigenvalue: what is left by a whole decomposition too
# Of the largest eigenvalue: the last pair may be below one that was missed by so much, which is well above what a
# Cholesky factor is rounded by.
CERTIFICATE_TOLERANCE = 1e-11
PLOT_TOLERANCE = 1e-3  # relative error of a value that is only looked at
ZERO = 1e-12  # singular values below this share of the largest are rounding
GRAM_ZERO = 1e-7  # the same from a Gram matrix, which squares them; squared ones above it keep eight digits


def smaller_gram(a: Tensor) -> Tensor:
    """A A^T or A^T A, the one of the cheaper side."""
    return a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a


def orthonormal_to(basis: Tensor, block: Tensor) -> Tensor:
    """Orthonormal columns that span what the block (n, b) adds to the orthonormal basis (n, m)."""
    for _ in range(2):  # twice is enough (Kahan)
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return block


def whole_pairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues (n,), falling, and eigenvectors (n, n) of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)


def krylov_pairs(gram: Tensor, cut: Cut) -> tuple[Tensor, Tensor] | None:
    """The leading eigenvalues of a positive semidefinite matrix, and eigenvectors of those that the cut keeps and of
    the next; None where they are too many.

    Rayleigh and Ritz in the space of X, G X, G G X, ...; a pair counts when |G y - theta y| <= RESIDUAL_TOLERANCE
    theta_1. That none was missed is proved: theta I - (G - Y diag(theta) Y^T), with theta CERTIFICATE_TOLERANCE theta_1
    above the last of them, has a Cholesky factor. Values behind the cut, for charts, are given as far as they have
    PLOT_TOLERANCE digits.
    """
    n, total = gram.shape[0], float(gram.trace())
    basis, image = gram[:, :0], gram[:, :0]
    block = torch.randn(n, BLOCK, dtype=gram.dtype, generator=torch.Generator().manual_seed(0))
    while basis.shape[1] + BLOCK * STRIDE <= MAX_SUBSPACE * n:
        for _ in range(STRIDE):
            block = orthonormal_to(basis, block)
            basis = torch.cat([basis, block], 1)
            block = gram @ block
            image = torch.cat([image, block], 1)
        values, inner = whole_pairs(basis.T @ image)
        k = cut(values, total) + 1
        if k <= len(values):
            y = basis @ inner
            residuals = (image @ inner - y * values).norm(dim=0)
            if residuals[:k].max() <= RESIDUAL_TOLERANCE * values[0] and is_all_above(gram, values[:k], y[:, :k]):
                visible = int((residuals > PLOT_TOLERANCE * values).cumsum(0).eq(0).sum())
                return values[: max(visible, k)], y[:, :k]
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
    pairs = krylov_pairs(gram, cut) if gram.shape[0] > DENSE_SIZE else None
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
