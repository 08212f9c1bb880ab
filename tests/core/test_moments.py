import pytest
import torch
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.moments import MomentsFitter, merge, mixed
from torch.testing import assert_close


def rows(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 3.0


def fit(*blocks, d):
    fitter = MomentsFitter(d)
    for block in blocks:
        fitter.add(block)
    return fitter.result()


def check(moments, h):
    scale = h.square().sum()
    assert moments.count == len(h)
    assert_close(moments.factor.T @ moments.factor, h.T @ h, rtol=0, atol=float(1e-12 * scale))
    assert_close(moments.sum, h.sum(0), rtol=0, atol=float(1e-12 * scale))
    assert moments.factor.shape[0] <= min(len(h), h.shape[1] + 1)
    assert abs(moments.energy - scale) < 1e-12 * scale


@pytest.mark.parametrize("n", [1, 5, 40, 41, 500])
def test_moments_are_those_of_the_rows_whatever_the_blocks(n):
    h = rows(n, 40)
    check(fit(h, d=40), h)
    check(fit(*h.split(7), d=40), h)
    with pytest.raises(AssertionError):  # control: the check tells other rows apart
        check(fit(h, d=40), rows(n, 40, seed=1))


@pytest.mark.parametrize(("n", "k"), [(3, 4), (90, 5), (90, 200)])
def test_merged_in_pieces_equals_all_at_once(n, k):
    a, b, c = rows(n, 20), rows(k, 20, 1), rows(9, 20, 2)
    left = merge(merge(fit(a, d=20), fit(b, d=20)), fit(c, d=20))
    right = merge(fit(a, d=20), merge(fit(b, d=20), fit(c, d=20)))
    for merged in (left, right):
        check(merged, torch.cat([a, b, c]))


@pytest.mark.parametrize(("n", "k"), [(5, 4), (90, 5), (4, 200)])
def test_mixed_moments_have_the_weighted_mean_and_second_moment(n, k):
    a, b = rows(n, 20), rows(k, 20, 1) * 2
    for share in (0.0, 0.3, 1.0):
        got = mixed(fit(a, d=20), fit(b, d=20), share)
        assert got.factor.shape[0] <= 21
        assert_close(got.mean, (1 - share) * a.mean(0) + share * b.mean(0))
        assert_close(got.second_moment(), (1 - share) * a.T @ a / n + share * b.T @ b / k)
        assert_close(got.ones @ got.ones, torch.tensor(float(got.count), dtype=torch.float64))
    assert not torch.allclose(mixed(fit(a, d=20), fit(b, d=20), 0.3).mean, merge(fit(a, d=20), fit(b, d=20)).mean)


@pytest.mark.parametrize("n", [4, 300])
def test_rows_minus_a_vector_are_exact_even_under_a_large_mean(n):
    h = rows(n, 12) * 1e-4 + 1e3
    mean = h.mean(0)
    centred = fit(h, d=12).minus(mean)
    exact = (h - mean).T @ (h - mean)
    assert_close(centred.factor.T @ centred.factor, exact, rtol=0, atol=float(1e-6 * exact.abs().max()))
    gram = h.T @ h - n * torch.outer(mean, mean)  # control: what subtracting Gram matrices would give
    assert (gram - exact).abs().max() > 1e-4 * exact.abs().max()


def test_a_slice_of_the_channels_is_that_heads_moments():
    h = rows(50, 12)
    check_slice = fit(h, d=12).columns(4, 8)
    assert_close(check_slice.factor.T @ check_slice.factor, h[:, 4:8].T @ h[:, 4:8], rtol=0, atol=1e-9)


def test_memory_is_bounded_by_the_width_whatever_the_number_of_rows():
    fitter = MomentsFitter(16)
    for i in range(200):
        fitter.add(rows(10, 16, i))
        assert fitter._held <= 2 * 17 + 10
    assert fitter.result().factor.shape[0] <= 17


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(bad):
    h = rows(3, 4)
    h[1, 2] = bad
    with pytest.raises(PureError, match="NaN or infinite"):
        MomentsFitter(4).add(h)


def test_no_rows_and_unequal_widths():
    assert MomentsFitter(4).result().energy == 0.0
    with pytest.raises(PureError, match="width 4 and 5"):
        merge(fit(rows(2, 4), d=4), fit(rows(2, 5), d=5))
