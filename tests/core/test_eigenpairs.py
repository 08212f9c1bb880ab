import pytest
import torch
from pure_pack.pure_core.eigenpairs import DENSE_SIZE, is_all_above, leading_pairs, left_directions
from torch.testing import assert_close

from spaces import orthonormal


def at_least(least):
    """The cut that keeps what is >= least, one at least."""
    return lambda values, total: max(int((values >= least).sum()), 1)


def gram(values):
    """A symmetric matrix with these eigenvalues, and the eigenvectors."""
    q = orthonormal(len(values), len(values), 4)
    return (q * values) @ q.T, q


def falling(n, power=2.0):
    return torch.arange(1, n + 1, dtype=torch.float64).pow(-power)


@pytest.mark.parametrize("shape", [(60, 20), (60, 200), (60, 60), (400, 300), (300, 500), (300, 40)])
@pytest.mark.parametrize("least", [0.0, 1e-12, 1e-6, 1e-2, 1e9])
def test_left_directions_are_those_of_the_decomposition_whatever_is_asked_for(shape, least):
    rows = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a = orthonormal(shape[0], shape[0]) @ (rows * torch.logspace(0, -6, shape[0], dtype=torch.float64)[:, None])
    found, z = left_directions(a, at_least(least))
    u, s, _ = torch.linalg.svd(a, full_matrices=False)
    k = max(int((s.square() >= least).sum()), 1)
    assert z.shape[1] == k
    assert k <= len(found) <= len(s)
    assert_close(found[:k].square(), s[:k].square(), rtol=0, atol=float(1e-12 * s[0] ** 2))
    assert ((found - s[: len(found)]).abs() <= 1e-3 * s[: len(found)] + 1e-7 * s[0]).all()
    assert_close(z.T @ z, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-8)
    assert_close(z @ z.T, u[:, :k] @ u[:, :k].T, rtol=0, atol=1e-8)
    assert torch.equal(z, left_directions(a, at_least(least))[1])  # bit by bit


@pytest.mark.parametrize("power", [1.5, 2.0, 4.0])
def test_leading_pairs_are_those_of_a_whole_decomposition(power):
    g, q = gram(falling(600, power))
    values, vectors = leading_pairs(g, at_least(0.03))
    k = vectors.shape[1]
    # one behind the cut, which proves it
    assert k == int((falling(600, power) >= 0.03).sum()) + 1
    assert k <= len(values) < 600
    assert_close(values[:k], falling(600, power)[:k], rtol=0, atol=1e-13)
    assert_close(vectors @ vectors.T, q[:, :k] @ q[:, :k].T, rtol=0, atol=1e-10)
    assert ((values - falling(600, power)[: len(values)]).abs() < 2e-3 * falling(600, power)[: len(values)]).all()


def test_a_cut_by_the_share_of_the_sum_needs_no_other_values():
    exact = falling(600)

    def by_share(values, total):
        return min(int((values.cumsum(0) / total < 0.95).sum()) + 1, len(values))

    _, vectors = leading_pairs(gram(exact)[0], by_share)
    assert vectors.shape[1] - 1 == int((exact.cumsum(0) / exact.sum() < 0.95).sum()) + 1


def test_equal_eigenvalues_are_missed_by_nobody():
    """A Krylov space from one start holds one direction of them; the proof tells where some were missed."""
    found, count = 16, 26
    values = torch.cat([torch.ones(count, dtype=torch.float64), 1e-3 * falling(400 - count)])
    g, q = gram(values)
    assert not is_all_above(
        g, torch.cat([values[:found], values[count : count + 1]]), torch.cat([q[:, :found], q[:, count : count + 1]], 1)
    )
    assert is_all_above(g, values[: count + 1], q[:, : count + 1])
    _, z = left_directions((q * values.sqrt()) @ orthonormal(400, 400, 5), at_least(0.5))
    assert z.shape[1] == count
    assert_close(z @ z.T, q[:, :count] @ q[:, :count].T, rtol=0, atol=1e-8)


def test_a_spectrum_that_hardly_falls_is_decomposed_whole():
    values = 1 + falling(2 * DENSE_SIZE)
    g, _ = gram(values)
    assert leading_pairs(g, at_least(1.0)) is None
    found, z = left_directions(torch.linalg.cholesky(g), at_least(1.0))
    assert z.shape[1] == len(found) == 2 * DENSE_SIZE
    assert_close(found.square(), values, rtol=0, atol=1e-12)


def test_few_rows_of_many_channels_give_their_rank():
    a = orthonormal(400, 5) @ torch.randn(5, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    found, z = left_directions(a, at_least(1e-3))
    assert len(found) == z.shape[1] == 5
    assert_close(z @ (z.T @ a), a, rtol=0, atol=1e-10)


def test_nothing_has_no_directions():
    for shape in ((5, 0), (0, 5), (300, 300)):
        found, z = left_directions(torch.zeros(shape, dtype=torch.float64), at_least(0.0))
        assert found.numel() == 0
        assert z.shape == (shape[0], 0)
