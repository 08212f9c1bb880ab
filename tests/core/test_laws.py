"""Laws that hold for every input, tried by Hypothesis on inputs nobody thought of."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pure_pack.pure_core.contrast import RIDGE, contrast_directions, removed_share
from pure_pack.pure_core.energy import factors, mean_squared_sine
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.moments import MomentsFitter, merge
from pure_pack.pure_core.projection import edit_matrix, iterate
from pure_pack.pure_core.prompts import anchor_prompts, fold, make_prompts, read_lines

D = 12
settings.register_profile(
    "laws", deadline=None, database=None, derandomize=True, max_examples=60
)  # the same examples every time
settings.load_profile("laws")
scales = st.sampled_from([1e-12, 1e-4, 1.0, 1e4, 1e12])
seeds = st.integers(0, 2**20)


def normal(n, d, seed):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments(rows):
    fitter = MomentsFitter(rows.shape[1])
    fitter.add(rows)
    return fitter.result()


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), order=st.randoms(), seed=seeds, scale=scales)
def test_moments_merge_in_any_order(sizes, order, seed, scale):
    blocks = list((normal(sum(sizes), D, seed) * scale).split(sizes))
    whole = moments(torch.cat(blocks))
    order.shuffle(blocks)
    merged = moments(blocks[0])
    for block in blocks[1:]:
        merged = merge(merged, moments(block)) if order.random() < 0.5 else merge(moments(block), merged)
    assert merged.count == whole.count
    near = {"rtol": 1e-10, "atol": 1e-10 * scale**2}
    torch.testing.assert_close(merged.second_moment(), whole.second_moment(), **near)
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-10, atol=1e-10 * scale)


@given(f=st.integers(0, D), r=st.integers(0, D), seed=seeds, times=st.integers(1, 4))
@example(f=0, r=0, seed=0, times=1)
@example(f=D, r=D, seed=0, times=4)
def test_the_energy_edit_keeps_what_is_kept_at_every_rank(f, r, seed, times):
    v_f, v_r = (torch.linalg.qr(normal(D, D, seed + i)).Q[:, :k] for i, k in enumerate((f, r)))
    u, m = iterate(*factors(v_f, v_r), times)
    edit = edit_matrix(u, m)
    torch.testing.assert_close(edit @ v_r, v_r)
    removed = mean_squared_sine(v_f, v_r)
    assert 0 <= removed <= 1 + 1e-12
    if f + r <= D and f:  # in general position something of the concept goes, and its own trace says how much
        left = torch.trace(v_f.T @ edit_matrix(*factors(v_f, v_r)) @ v_f) / f
        assert float(left) == pytest.approx(1 - removed, abs=1e-9)


@given(forget=st.integers(1, 30), keep=st.integers(1, 30), seed=seeds, scale=scales, weight=st.floats(0.01, 100))
def test_the_contrast_edit_is_the_least_squares_one_at_every_scale(forget, keep, seed, scale, weight):
    """Against W B (A + w B)^-1 solved directly, in the rows' own scale and in units of one."""
    h_f, h_r = normal(forget, D, seed), normal(keep, D, seed + 1) + 1.0
    ratios, x, bx = contrast_directions(moments(h_f * scale), moments(h_r * scale), weight)
    a, b = h_f.T @ h_f / forget, h_r.T @ h_r / keep
    b += RIDGE * torch.trace(b) / D * torch.eye(D, dtype=torch.float64)
    exact = torch.eye(D, dtype=torch.float64) - weight * b @ torch.linalg.inv(a + weight * b)
    dropped = removed_share(ratios[x.shape[1] :], weight)
    assert (dropped < 0.05 + 1e-9).all() or x.shape[1] == 1
    lower = torch.linalg.cholesky(b)
    got = torch.linalg.solve_triangular(lower, (bx * removed_share(ratios[: x.shape[1]], weight)) @ x.T, upper=False)
    want = torch.linalg.solve_triangular(lower, exact, upper=False)
    left_out = torch.linalg.matrix_norm((got - want) @ lower, 2)  # in B's own norm the shares are the singular values
    assert float(left_out) <= float(dropped.max() if len(dropped) else 0) + 1e-8


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(box=text)
@example(box="İ\nı")  # casefold changes its length
@example(box="A\x85a\u2028\tA ")
def test_lines_are_distinct_and_reading_them_again_changes_nothing(box):
    found = read_lines(box)
    assert len({fold(line) for line in found.lines}) == len(found.lines)
    assert found.blank + found.repeated + len(found.lines) == len(box.splitlines())
    assert read_lines("\n".join(found.lines)).lines == found.lines


@given(concept=text, before=text, after=text)
@example(concept="{}", before="a ", after="")
@example(concept="\\1", before="", after="")
def test_a_concept_is_put_into_its_template_letter_by_letter(concept, before, after):
    lines = read_lines(concept).lines
    assume(lines)
    forms = read_lines(f"{before}{{}}{after}").lines
    try:
        prompts = anchor_prompts(concept, "forget", templates=f"{before}{{}}{after}")
    except PureError as error:  # a line without a place or with two, which braces of its own can make
        assert "exactly once" in str(error)
        assert any(form.count("{}") != 1 or "{{}" in form or "{}}" in form for form in forms)
        return
    expected = [line.join(form.split("{}")) for line in lines for form in forms]
    assert list(prompts.texts) == expected


@given(forget=text, keep=text)
def test_two_lists_give_prompts_that_differ_or_a_sentence(forget, keep):
    try:
        to_forget, to_keep, listing = make_prompts(forget, keep)
    except PureError as error:
        shared = {fold(line) for line in read_lines(forget).lines} & {fold(line) for line in read_lines(keep).lines}
        assert "empty" in str(error) or "both lists" in str(error)
        assert "both lists" not in str(error) or shared or read_lines(keep).lines
        return
    assert not {fold(t) for t in to_forget.texts} & {fold(t) for t in to_keep.texts}
    assert listing.startswith(("forget:", "Warning:"))
