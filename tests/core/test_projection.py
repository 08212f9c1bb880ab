"""Every claim on the algebra of E = I - P_F (I - P_R), in float64."""

import math

import pytest
import torch
from pure_pack.pure_core.energy import factors, mean_squared_sine, principal_cosines
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.lora import lora_factors
from pure_pack.pure_core.projection import check_strength, edit_matrix, iterate, weight_delta
from torch.testing import assert_close

from spaces import KINDS, orthonormal, pair

TIGHT = 1e-10


def definition(v_f, v_r):
    eye = torch.eye(len(v_f), dtype=torch.float64)
    return eye - v_f @ v_f.T @ (eye - v_r @ v_r.T)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_equal_the_definition(kind):
    v_f, v_r = pair(kind)
    u, m = factors(v_f, v_r)
    assert_close(edit_matrix(u, m), definition(v_f, v_r), rtol=0, atol=TIGHT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_retain_space_is_kept_exactly(kind, strength, iterations):
    v_f, v_r = pair(kind)
    e = edit_matrix(*factors(v_f, v_r), strength, iterations)
    assert (e @ v_r - v_r).abs().max() < TIGHT if v_r.shape[1] else True
    moved = edit_matrix(*factors(v_f, v_r[:, :0]), strength, iterations) @ v_r  # control: without the retain basis
    if kind in ("random", "overlapping", "nested"):
        assert (moved - v_r).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_on_the_forget_space_the_eigenvalues_are_squared_cosines(kind, iterations):
    v_f, v_r = pair(kind)
    e = edit_matrix(*factors(v_f, v_r), 1.0, iterations)
    inside = v_f.T @ e @ v_f
    assert_close(e @ v_f, v_f @ inside, rtol=0, atol=TIGHT)  # E maps span(V_F) into itself
    cosines = torch.zeros(v_f.shape[1], dtype=torch.float64)
    found = principal_cosines(v_f, v_r)
    cosines[: len(found)] = found
    got = torch.linalg.eigvalsh((inside + inside.T) / 2).flip(0)
    assert_close(got, cosines.sort(descending=True).values ** (2 * iterations), rtol=0, atol=TIGHT)


def test_a_direction_in_both_spaces_is_kept_whole_and_an_orthogonal_one_goes():
    v_f, v_r = pair("overlapping")
    e = edit_matrix(*factors(v_f, v_r))
    assert (e @ v_f[:, 0] - v_f[:, 0]).norm() < TIGHT
    v_f, v_r = pair("orthogonal")
    assert (edit_matrix(*factors(v_f, v_r)) @ v_f).abs().max() < TIGHT


def test_a_concept_inside_the_retain_space_is_not_erased_at_all():
    v_f, v_r = pair("nested")
    assert mean_squared_sine(v_f, v_r) < 1e-12
    assert_close(edit_matrix(*factors(v_f, v_r)), torch.eye(len(v_f), dtype=torch.float64), rtol=0, atol=TIGHT)


def test_e_is_no_contraction_and_its_norms_are_those_of_the_worst_angle():
    def norm_at(theta, n):
        v_r = torch.tensor([[math.cos(theta)], [math.sin(theta)]], dtype=torch.float64)
        return float(
            torch.linalg.matrix_norm(edit_matrix(*factors(torch.eye(2, dtype=torch.float64)[:, :1], v_r), 1.0, n), 2)
        )

    angles = torch.linspace(0.0, math.pi / 2, 2001).tolist()
    for n, norm in ((1, 2 / math.sqrt(3)), (2, 1.31), (4, 1.58)):
        assert max(norm_at(t, n) for t in angles) == pytest.approx(norm, abs=5e-3)
    v_f, v_r = pair("overlapping")
    outside = (torch.eye(len(v_f), dtype=torch.float64) - v_f @ v_f.T) @ v_r[:, 3]  # orthogonal to F, not to R
    added = edit_matrix(*factors(v_f, v_r)) @ outside - outside
    assert (added - v_f @ v_f.T @ v_r @ v_r.T @ outside).norm() < TIGHT < added.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_iterated_factors_are_the_power(kind, iterations):
    v_f, v_r = pair(kind)
    u, m = factors(v_f, v_r)
    eye = torch.eye(len(v_f), dtype=torch.float64)
    u_n, m_n = iterate(u, m, iterations)
    assert_close(eye - u_n @ m_n.T, torch.linalg.matrix_power(definition(v_f, v_r), iterations), rtol=0, atol=TIGHT)
    assert u_n is u  # the left factor, and with it the rank, stays


@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_is_a_lora_exactly_on_both_sides(kind):
    v_f, v_r = pair(kind)
    u, m = factors(v_f, v_r)
    e, weight = edit_matrix(u, m), orthonormal(48, 48, 9)[:, :30]
    up, down = lora_factors(weight, u, m, "left")
    assert_close(weight + up @ down, e @ weight, rtol=0, atol=1e-13)
    assert up.shape[1] == v_f.shape[1]
    assert_close(weight - weight_delta(weight, u, m, "left"), e @ weight, rtol=0, atol=1e-13)
    up, down = lora_factors(weight.T, u, m, "right")
    assert_close(weight.T + up @ down, weight.T @ e, rtol=0, atol=1e-13)
    assert_close(weight.T - weight_delta(weight.T, u, m, "right"), weight.T @ e, rtol=0, atol=1e-13)


def test_the_loras_rank_is_that_of_f_without_its_part_in_r():
    v_f, v_r = pair("overlapping")
    up, down = lora_factors(orthonormal(48, 48, 9), *factors(v_f, v_r), "left")
    assert int(torch.linalg.matrix_rank(up @ down, rtol=1e-9)) == 6 - 2


def test_two_such_loras_stacked_do_not_compose():
    """A shared forget direction gets the factor -1 instead of 0; a joint basis erases it."""
    v = orthonormal(20, 3)
    none = v[:, :0]
    one, other = v[:, :2], v[:, 1:3]
    eye = torch.eye(20, dtype=torch.float64)
    stacked = eye - sum(u @ m.T for u, m in (factors(one, none), factors(other, none)))
    assert (stacked @ v[:, 1] + v[:, 1]).norm() < TIGHT
    assert (edit_matrix(*factors(v, none)) @ v[:, 1]).norm() < TIGHT


def test_right_multiplying_the_output_weight_projects_the_activation():
    v_f, v_r = pair("random")
    u, m = factors(v_f, v_r)
    w_o, h = orthonormal(48, 48, 4), orthonormal(48, 7, 5)
    edited = w_o - weight_delta(w_o, u, m, "right")
    assert_close(edited @ h, w_o @ (edit_matrix(u, m) @ h), rtol=0, atol=3e-14)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 3e-4), (torch.bfloat16, 2.5e-3)])
def test_half_precision_bounds_what_is_stored(dtype, bound):
    v_f, v_r = pair("random")
    weight = orthonormal(48, 48, 9)
    exact = edit_matrix(*factors(v_f, v_r)) @ weight
    error = float((exact.to(dtype).double() - exact).norm() / exact.norm())
    assert 0 < error < bound


@pytest.mark.parametrize("strength", [float("nan"), -0.1, 1.1, float("inf")])
def test_strength_outside_nothing_and_all_is_refused(strength):
    with pytest.raises(PureError, match="strength must be"):
        check_strength(strength)


@pytest.mark.parametrize("iterations", [0, 5])
def test_iterations_outside_their_range_are_refused(iterations):
    with pytest.raises(PureError, match="iterations must be"):
        iterate(*factors(*pair("random")), iterations)
