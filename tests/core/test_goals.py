"""Bases with ordinary pictures among what is kept, and with something that is drawn instead."""

import pytest
import torch
from pure_pack.pure_core.basis import Settings
from pure_pack.pure_core.build import build_basis, describe_basis
from pure_pack.pure_core.contrast import LONGEST_REFILL, RIDGE, contrast_directions, removed_share
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.moments import mixed
from pure_pack.pure_core.ordinary import NEUTRAL, PLAIN, TOGETHER
from pure_pack.pure_core.prompts import EMPTY
from torch.testing import assert_close

from captures import CONCEPT, FORGET, HEADS, INSTEAD, LAYERS, RETAIN, SHARED, D, captured, rows, whole_layer

ORDINARY = captured("retain", ["a red circle", "a blue star"], [rows(False, 5, 100), rows(False, 6, 100)])
WITH_NEUTRAL = captured("retain", [TOGETHER, PLAIN], [rows(False, 5, 100), rows(False, 6, 100)])


def test_ordinary_pictures_are_their_share_of_what_is_kept():
    """Against the second moment and the mean put together by hand; how many rows each capture has does not count."""
    settings = whole_layer(ordinary_share=0.25)
    basis, _ = build_basis(FORGET, RETAIN, settings, ORDINARY)
    for i, name in enumerate(LAYERS):
        kept, other, forget = rows(False, 3 + i, 200), rows(False, 5 + i, 100), rows(True, 1 + i)
        mean = 0.75 * kept.mean(0) + 0.25 * other.mean(0)
        b = 0.75 * kept.T @ kept / 200 + 0.25 * other.T @ other / 100
        b += RIDGE * torch.trace(b) / D * torch.eye(D, dtype=torch.float64)
        a = (forget - mean).T @ (forget - mean) / len(forget)
        exact = torch.eye(D, dtype=torch.float64) - settings.keep_weight * b @ torch.linalg.inv(
            a + settings.keep_weight * b
        )
        edit = basis.sites[name]
        values, x, bx = contrast_directions(
            FORGET.moments[name].minus(mean), mixed(RETAIN.moments[name], ORDINARY.moments[name], 0.25), 3.0
        )
        assert_close(edit.values.double(), values[: edit.rank], rtol=1e-6, atol=0)
        got = (bx * removed_share(values[: x.shape[1]], 3.0)) @ x.T
        assert torch.linalg.matrix_norm(got - exact, 2) < 0.06 * torch.linalg.matrix_norm(
            exact, 2
        )  # the shares cut off
    alone, _ = build_basis(FORGET, RETAIN, settings)
    assert not torch.allclose(alone.sites[LAYERS[0]].u, basis.sites[LAYERS[0]].u)  # control


def test_ordinary_pictures_alone_are_all_that_is_kept():
    alone, warnings = build_basis(FORGET, None, whole_layer(), ORDINARY)
    as_list, _ = build_basis(FORGET, ORDINARY, whole_layer())
    assert_close(alone.sites[LAYERS[0]].u, as_list.sites[LAYERS[0]].u)
    assert not any("Nothing is listed to keep" in w for w in warnings)
    assert "2 ordinary pictures" in describe_basis(alone, warnings)


@pytest.mark.parametrize("centering", ["mean of keep", "none"])
@pytest.mark.parametrize("structure", ["whole layer", "per head"])
def test_what_is_drawn_instead_is_where_the_forget_rows_go(structure, centering):
    """Against (w B + g f^T) (A + w B)^-1 put together by hand, per block of channels, with every direction kept."""
    weight = RIDGE  # no direction that tells is negligible
    settings = Settings(structure=structure, centering=centering, keep_weight=weight)
    basis, _ = build_basis(FORGET, RETAIN, settings, replacement=INSTEAD)
    parts = HEADS if structure == "per head" else 1
    for i, name in enumerate(LAYERS):
        kept, forget = rows(False, 3 + i, 200), rows(True, 1 + i)
        mean = kept.mean(0) if centering == "mean of keep" else torch.zeros(D, dtype=torch.float64)
        goal = INSTEAD.sums[name].sum(0) / 60 - mean
        edit = basis.sites[name]
        got = torch.eye(D, dtype=torch.float64) - edit.left.double() @ edit.m.double().T
        for block in torch.arange(D).chunk(parts):
            f, k, g = (forget - mean)[:, block], kept[:, block], goal[block]
            a, b = f.T @ f / len(f), k.T @ k / len(k)
            b += RIDGE * torch.trace(b) / len(block) * torch.eye(len(block), dtype=torch.float64)
            exact = (weight * b + torch.outer(g, f.mean(0))) @ torch.linalg.inv(a + weight * b)
            inside = got[block][:, block]
            # control: without what is drawn instead it is another edit
            taken = torch.eye(len(block)) - (edit.u.double() @ edit.m.double().T)[block][:, block]
            span = f.T  # where the concept is, all that the directions are kept for
            assert_close(inside @ span, exact @ span, rtol=0, atol=2e-3 * float((exact @ span).norm(dim=0).max()))
            assert not torch.allclose(taken @ span, exact @ span, rtol=0, atol=0.1)
        moved = (got @ (forget - mean).T).mean(1)
        assert 0.5 < float(moved @ goal / goal.square().sum()) <= 1


def test_what_is_drawn_instead_is_in_the_report_and_nothing_else_changes():
    plain, neutral = (build_basis(FORGET, RETAIN, Settings(), o)[0] for o in (ORDINARY, WITH_NEUTRAL))
    other, warnings = build_basis(FORGET, RETAIN, Settings(), ORDINARY, INSTEAD)
    for name in LAYERS:
        assert torch.equal(plain.sites[name].u, other.sites[name].u)
        assert torch.equal(plain.sites[name].left, plain.sites[name].u)
        assert not torch.equal(other.sites[name].left, other.sites[name].u)
    assert "Draws a dog instead." in describe_basis(other, warnings)
    assert "Draws nothing in particular instead." in describe_basis(neutral, warnings)
    assert "instead" not in describe_basis(plain, [])


def test_the_empty_prompt_is_not_drawn_instead():
    """PURE Concept Prompts adds it to what it keeps."""
    rows_of = [rows(False, 7), rows(False, 8)]
    alone = captured("retain", ["a dog"], rows_of)
    beside = captured("retain", ["a dog", EMPTY], [torch.cat([h, 5 + rows(False, 9)]) for h in rows_of])
    a, b = (build_basis(FORGET, RETAIN, Settings(), ORDINARY, capture)[0] for capture in (alone, beside))
    assert_close(a.sites[LAYERS[0]].left, b.sites[LAYERS[0]].left)
    with pytest.raises(PureError, match="of the empty prompt alone"):
        build_basis(FORGET, RETAIN, Settings(), ORDINARY, captured("retain", [EMPTY], rows_of))


def test_a_neutral_picture_among_the_ordinary_ones_is_where_the_concept_goes():
    """As if it had been captured as what is drawn instead; and what is drawn instead comes first."""
    h = [torch.cat([rows(False, 5), 2.0 + rows(False, 7)]), torch.cat([rows(False, 6), rows(False, 8) - 2.0])]
    ordinary = captured("retain", [TOGETHER, PLAIN], h)
    same = captured("retain", ["a picture"], [block[60:] for block in h])
    unknown = captured("retain", [TOGETHER], h)
    cases = ((ordinary, None), (ordinary, same), (ordinary, INSTEAD), (unknown, None))
    neutral, goal, other, away = (build_basis(FORGET, RETAIN, Settings(), *case)[0] for case in cases)
    for name in LAYERS:
        assert_close(neutral.sites[name].left, goal.sites[name].left)
        assert not torch.allclose(neutral.sites[name].left, other.sites[name].left)  # control
        assert not away.sites[name].refill.numel()  # control
    taken = build_basis(FORGET, RETAIN, whole_layer("energy"), ordinary)[0]
    assert not any(edit.refill.numel() for edit in taken.sites.values())


def test_what_cannot_be_drawn_instead_is_refused():
    with pytest.raises(PureError, match="'zorbo' is to be erased and to be drawn instead"):
        build_basis(FORGET, RETAIN, Settings(), ORDINARY, FORGET)
    other = captured("forget", ["a dog"], [rows(False, 7), rows(False, 8)], weights="another")
    with pytest.raises(PureError, match="capture of the replacement differ in the attention weights"):
        build_basis(FORGET, RETAIN, Settings(), ORDINARY, other)
    with pytest.raises(PureError, match="rule energy cannot draw something else instead"):
        build_basis(FORGET, RETAIN, whole_layer("energy"), None, INSTEAD)


def test_without_ordinary_pictures_a_low_weight_is_warned_of():
    assert "hardly spared" in build_basis(FORGET, RETAIN, Settings())[1][0]
    assert build_basis(FORGET, RETAIN, Settings(), WITH_NEUTRAL)[1] == []  # control
    assert build_basis(FORGET, RETAIN, Settings(keep_weight=3.0))[1] == []  # control


def test_a_capture_that_is_not_of_ordinary_pictures_is_warned_of():
    """It has no neutral prompts, and the defaults were chosen with them."""
    words = "does not say what a picture of nothing in particular looks like"
    assert [words in w for w in build_basis(FORGET, RETAIN, Settings(), ORDINARY)[1]] == [True]
    for settings, ordinary, instead in (
        (Settings(), WITH_NEUTRAL, None),
        (Settings(), ORDINARY, INSTEAD),
        (whole_layer("energy"), ORDINARY, None),
    ):
        assert not any(words in w for w in build_basis(FORGET, RETAIN, settings, ordinary, instead)[1])  # control


def test_nothing_grows_without_bound_where_nothing_is_kept():
    """A direction that is hardly there would bring all of the way to where the concept goes."""
    own = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ CONCEPT.T
    forget = captured("forget", ["zorbo"], [own + 1e-5 * SHARED[:, 5]] * 2)
    for weight in (0.0, 1e-6, 0.005):
        for structure in ("per head", "whole layer"):
            settings = Settings(keep_weight=weight, structure=structure, centering="none")
            basis, _ = build_basis(forget, RETAIN, settings, WITH_NEUTRAL)
            for edit in basis.sites.values():
                assert edit.refill.shape == edit.u.shape
                assert edit.refill.norm(dim=0).max() < LONGEST_REFILL / 10


def test_what_is_no_capture_of_ordinary_pictures_is_refused():
    with pytest.raises(PureError, match="PURE Capture Ordinary Pictures there"):
        build_basis(FORGET, RETAIN, Settings(), FORGET)
    other = captured("retain", ["a red circle"], [rows(False, 5), rows(False, 6)], weights="another")
    with pytest.raises(PureError, match="capture of ordinary pictures differ in the attention weights"):
        build_basis(FORGET, RETAIN, Settings(), other)


def test_a_report_counts_captions_alone():
    prompts = ("a red circle", "a blue star", "", *NEUTRAL["pictures"])
    ordinary = captured("retain", [TOGETHER, PLAIN], [rows(False, 5), rows(False, 6)], prompts=prompts)
    assert ", and 2 ordinary pictures." in describe_basis(build_basis(FORGET, RETAIN, Settings(), ordinary)[0], [])


def test_what_is_to_go_and_is_what_concepts_are_sent_to_is_warned_of():
    """It would be sent to itself, and nothing would happen without a word."""
    prompts = ("a red circle", "a blue star", "", *NEUTRAL["pictures"])
    ordinary = captured("retain", [TOGETHER, PLAIN], [rows(False, 5), rows(False, 6)], prompts=prompts)

    def warned(prompt, instead=None):
        forget = captured("forget", ["zorbo"], [rows(True, 1), rows(True, 2)], prompts=["zorbo", prompt])
        return build_basis(forget, RETAIN, Settings(), ordinary, instead)[1]

    assert warned("A drawing")[0].startswith("'A drawing' is one of the pictures of nothing in particular")
    assert warned("a blue star") == warned("A drawing", INSTEAD) == []  # control
