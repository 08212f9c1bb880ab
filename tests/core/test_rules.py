import pytest
import torch
from pure_pack.pure_core.contrast import NEGLIGIBLE_SHARE, RIDGE, contrast_directions, removed_share
from pure_pack.pure_core.energy import (
    add_direction,
    energy_rank,
    mean_squared_sine,
    principal_cosines,
    principal_directions,
)
from torch.testing import assert_close

from captures import moments
from spaces import orthonormal


def random_rows(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "d"), [(8, 60), (400, 30)])
def test_the_spectrum_is_that_of_the_stacked_rows(n, d):
    h = random_rows(n, d)
    s, v = principal_directions(moments(h), 1.0)
    _, s_h, vh = torch.linalg.svd(h, full_matrices=False)
    assert_close(s, s_h, rtol=0, atol=1e-10)
    assert_close(v.T @ v, torch.eye(v.shape[1], dtype=torch.float64), rtol=0, atol=1e-12)
    assert_close(v @ v.T, vh.T @ vh, rtol=0, atol=1e-9)
    _, part = principal_directions(moments(h), 0.6)
    r = energy_rank(s_h, 0.6)
    assert part.shape[1] == r < v.shape[1]
    assert_close(part @ part.T, vh[:r].T @ vh[:r], rtol=0, atol=1e-9)
    assert principal_directions(moments(h), 0.6, 2)[1].shape[1] == 2


def test_rank_deficient_rows_give_their_rank_and_no_rounding_directions():
    h = random_rows(300, 4) @ orthonormal(50, 4).T
    s, v = principal_directions(moments(h), 1.0)
    assert len(s) == 4
    assert v.shape[1] == energy_rank(s, 1.0) == 4


def test_a_float32_gram_would_see_a_wrong_rank_near_one():
    """Why moments are kept as a float64 square root: the small directions drown in a float32 Gram."""
    h = random_rows(200, 30) * torch.logspace(0, -6, 30, dtype=torch.float64) @ orthonormal(30, 30)
    tau = 1 - 1e-11
    s, _ = principal_directions(moments(h), tau)
    gram = torch.linalg.eigvalsh(h.float().T @ h.float()).flip(0).clamp(min=0).double().sqrt()
    exact = energy_rank(torch.linalg.svdvals(h), tau)
    assert energy_rank(s, tau) == exact
    assert energy_rank(gram, tau) != exact


def test_energy_rank_is_the_least_that_reaches_the_share():
    s = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)  # shares 4/6, 5/6, 1
    assert [energy_rank(s, t) for t in (0.0, 0.5, 4 / 6, 0.7, 5 / 6, 0.99, 1.0)] == [0, 1, 1, 2, 2, 3, 3]
    assert energy_rank(s, 1.0, max_rank=2) == 2
    assert energy_rank(s[:0], 0.9) == 0


def test_retain_error_is_bounded_by_the_energy_that_was_not_kept():
    h = random_rows(200, 30) * torch.logspace(0, -2, 30, dtype=torch.float64)
    for tau in (0.5, 0.9, 0.99):
        kept = principal_directions(moments(h), tau)[1]
        v_f = orthonormal(30, 30, 3)  # forgets everything, the worst case
        edited = h - (h - h @ kept @ kept.T) @ v_f @ v_f.T
        assert (edited - h).norm() / h.norm() <= (1 - tau) ** 0.5 + 1e-12


def test_principal_angles():
    a = orthonormal(10, 4)
    angle = torch.tensor([0.3, 1.1], dtype=torch.float64)
    b = a[:, :2] * angle.cos() + a[:, 2:] * angle.sin()
    assert_close(principal_cosines(a[:, :2], b), angle.cos(), rtol=0, atol=1e-12)
    assert mean_squared_sine(a[:, :2], b) == pytest.approx(float(angle.sin().square().mean()), abs=1e-12)
    assert mean_squared_sine(a, a[:, :0]) == pytest.approx(1.0)
    assert mean_squared_sine(a[:, :0], b) == 0.0


def test_a_direction_is_added_once():
    v = orthonormal(10, 3)
    more = add_direction(v, orthonormal(10, 1, 5)[:, 0])
    assert more.shape[1] == 4
    assert_close(more.T @ more, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert add_direction(v, v @ torch.ones(3, dtype=torch.float64)).shape[1] == 3
    assert add_direction(v, torch.zeros(10, dtype=torch.float64)).shape[1] == 3


@pytest.mark.parametrize(("n_f", "n_r", "d"), [(12, 20, 60), (400, 900, 30)])
def test_contrast_directions_are_generalised_eigenvectors(n_f, n_r, d):
    f, r = random_rows(n_f, d), random_rows(n_r, d, 1)
    ratios, x, bx = contrast_directions(moments(f), moments(r), 1.0, 5)
    a = f.T @ f / n_f
    b = r.T @ r / n_r
    b = b + RIDGE * b.trace() / d * torch.eye(d, dtype=torch.float64)
    assert_close(a @ x, b @ x * ratios[:5], rtol=0, atol=float(1e-9 * a.abs().max()))
    assert_close(x.T @ b @ x, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-10)
    assert_close(bx, b @ x, rtol=0, atol=1e-10)
    largest = torch.linalg.eigvals(torch.linalg.solve(b, a)).real.sort(descending=True).values[: len(ratios)]
    assert x.shape[1] == 5
    assert len(ratios) == min(n_f, d)
    assert_close(ratios, largest, rtol=0, atol=float(1e-8 * largest[0]))


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_the_contrast_edit_is_the_least_squares_balance_of_erasing_and_keeping(weight):
    """E = weight B (A + weight B)^-1 minimises mean |E h_F|^2 + weight mean |E h_R - h_R|^2 with the ridge.

    Any step from it costs.
    """
    d = 20
    f, r = 3 * random_rows(50, d) + 2 * orthonormal(d, 1)[:, 0], random_rows(500, d, 1)
    ratios, x, bx = contrast_directions(moments(f), moments(r), weight)
    e = torch.eye(d, dtype=torch.float64) - (bx * removed_share(ratios, weight)) @ x.T
    a, b = f.T @ f / len(f), r.T @ r / len(r)
    b = b + RIDGE * b.trace() / d * torch.eye(d, dtype=torch.float64)
    assert x.shape[1] == d
    assert_close(e, weight * b @ torch.linalg.inv(a + weight * b), rtol=0, atol=1e-9)
    eye = torch.eye(d, dtype=torch.float64)

    def cost(m):
        return float(torch.trace(m @ a @ m.T) + weight * torch.trace((m - eye) @ b @ (m - eye).T))

    assert all(cost(e) < cost(e + 0.01 * random_rows(d, d, s)) for s in range(5))
    assert cost(e) < min(cost(eye), cost(0 * eye))  # control: neither nothing nor everything is it


def test_directions_along_which_little_goes_are_left_alone_but_one_stays():
    f, r = random_rows(50, 20), random_rows(500, 20, 1)
    counts = [contrast_directions(moments(f), moments(r), w)[1].shape[1] for w in (0.0, 1.0, 10.0, 1e6)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 20
    assert counts[-1] == 1
    shares = removed_share(contrast_directions(moments(f), moments(r), 10.0)[0], 10.0)
    assert (shares[: counts[2]] >= NEGLIGIBLE_SHARE).all()
    assert (shares[counts[2] :] < NEGLIGIBLE_SHARE).all()
    assert counts[2] < 20


def test_without_retain_rows_contrast_is_plain_principal_directions():
    h = random_rows(30, 12)
    _, x, bx = contrast_directions(moments(h), None, 0.0, 3)
    _, v = principal_directions(moments(h), 1.0)
    assert_close(bx @ x.T, v[:, :3] @ v[:, :3].T, rtol=0, atol=1e-9)


def test_no_energy_gives_no_directions():
    zero = moments(torch.zeros(5, 8, dtype=torch.float64))
    assert principal_directions(zero, 1.0)[1].shape == (8, 0)
    assert contrast_directions(zero, moments(random_rows(9, 8)), 2.0)[1].shape == (8, 0)
