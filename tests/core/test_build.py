"""Bases from activations: both rules, structures, centring, faults."""

import pytest
import torch
from pure_pack.pure_core.activations import merge_activations
from pure_pack.pure_core.basis import TENSORS, Settings
from pure_pack.pure_core.build import build_basis, describe_basis
from pure_pack.pure_core.charts import basis_chart
from pure_pack.pure_core.contrast import LONGEST_REFILL, RIDGE, contrast_directions, removed_share
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.leakage import movement
from pure_pack.pure_core.moments import mixed
from pure_pack.pure_core.neighbours import TWIN, closest_kept
from pure_pack.pure_core.ordinary import PLAIN, TOGETHER
from pure_pack.pure_core.projection import edit_matrix
from pure_pack.pure_core.prompts import EMPTY
from torch.testing import assert_close

from captures import CONCEPT, FORGET, HEADS, INSTEAD, LAYERS, RETAIN, SHARED, D, captured, rows, whole_layer
from spaces import orthonormal

WORKING = [
    whole_layer("contrast", keep_weight=0.2, max_rank=2, centering="none"),
    whole_layer("energy", 0.9999, 0.999, centering="none"),
    whole_layer("energy", 0.9999, 0.99, centering="mean of keep"),
    whole_layer("contrast", keep_weight=0.2, max_rank=2, centering="mean of keep"),
]


def left(before, after, directions, mean_before, mean_after):
    """Energy in the directions of rows less their model's mean, after over before."""
    now, then = (
        ((rows - mean) @ directions).square().sum() for rows, mean in ((after, mean_after), (before, mean_before))
    )
    return float(now / then)


@pytest.mark.parametrize("settings", WORKING, ids=str)
def test_the_concept_goes_and_the_rest_stays(settings):
    basis, _ = build_basis(FORGET, RETAIN, settings)
    for i, b in enumerate(basis.sites.values()):
        e = edit_matrix(b.u.double(), b.m.double())
        fresh, kept = rows(True, 10 + i), rows(False, 20 + i)
        mean = kept.mean(0)
        assert left(fresh, fresh @ e.T, CONCEPT, mean, kept.mean(0) @ e.T) < 0.05
        assert movement(kept, kept @ e.T) < 0.1
        other = orthonormal(D, b.rank, 30)  # control: a random edit of the same rank
        cut = torch.eye(D, dtype=torch.float64) - other @ other.T
        assert left(fresh, fresh @ cut, CONCEPT, mean, mean @ cut) > 0.3


def test_a_usual_energy_pair_erases_less_than_a_high_and_a_low_one():
    """Both at .95: the mean and the common part take the energy."""

    def remaining(settings):
        basis, _ = build_basis(FORGET, RETAIN, settings)
        b = basis.sites[LAYERS[0]]
        h, mean, e = rows(True, 9), rows(False, 5).mean(0), edit_matrix(b.u.double(), b.m.double())
        return left(h, h @ e.T, CONCEPT, mean, mean @ e.T)

    assert (
        remaining(whole_layer("energy", 0.9, 0.99, centering="none"))
        > 0.9
        > 0.2
        > remaining(whole_layer("energy", 0.9999, 0.99, centering="none"))
    )


@pytest.mark.parametrize("rule", ["energy", "contrast"])
def test_per_head_edits_are_block_diagonal(rule):
    basis, _ = build_basis(FORGET, RETAIN, whole_layer(rule, keep_energy=0.9, structure="per head", max_rank=1))
    for b in basis.sites.values():
        e = edit_matrix(b.u, b.m)
        mask = torch.block_diag(*[torch.ones(D // HEADS, D // HEADS)] * HEADS).bool()
        assert e[~mask].abs().max() == 0
        assert (e - torch.eye(D))[mask].abs().max() > 1e-3
    whole, _ = build_basis(FORGET, RETAIN, whole_layer(rule, keep_energy=0.9))
    assert edit_matrix(whole.sites[LAYERS[0]].u, whole.sites[LAYERS[0]].m)[~mask].abs().max() > 1e-3  # control


def test_layers_and_heads_without_energy_are_left_alone_and_named():
    dead_head = rows(True, 1).clone()
    dead_head[:, :8] = 0
    forget = captured("forget", ["zorbo"], [dead_head, torch.zeros(60, D, dtype=torch.float64)])
    for rule in ("energy", "contrast"):
        basis, warnings = build_basis(forget, RETAIN, whole_layer(rule, keep_energy=0.9, structure="per head"))
        first, second = (basis.sites[n] for n in LAYERS)
        assert second.rank == 0
        assert any(LAYERS[1] in w and "no energy" in w for w in warnings)
        assert torch.equal(edit_matrix(first.u, first.m)[:8, :8], torch.eye(8))
        assert first.rank > 0
        assert f"{LAYERS[1]}: width {D}, rank 0" in describe_basis(basis, warnings)
    with pytest.raises(PureError, match="left no trace"):
        build_basis(captured("forget", ["zorbo"], [torch.zeros(4, D, dtype=torch.float64)] * 2), RETAIN, whole_layer())


def test_without_retain_everything_the_forget_rows_share_goes():
    basis, _ = build_basis(FORGET, None, whole_layer("energy", 1.0))
    h, b = FORGET.moments[LAYERS[0]].factor, basis.sites[LAYERS[0]]
    assert (h @ edit_matrix(b.u.double(), b.m.double()).T).square().sum() < 1e-9 * h.square().sum()


def test_without_retain_the_mean_cannot_be_taken_off_and_the_report_says_so():
    for rule in ("energy", "contrast"):
        centred, warnings = build_basis(FORGET, None, whole_layer(rule, centering="mean of keep"))
        plain, _ = build_basis(FORGET, None, whole_layer(rule, centering="none"))
        assert "Nothing is listed to keep" in warnings[0]
        assert not any("Nothing is listed" in w for w in build_basis(FORGET, RETAIN, whole_layer(rule))[1])
        assert all(torch.equal(centred.sites[n].u, plain.sites[n].u) for n in LAYERS)


def test_max_rank_caps():
    for rule in ("energy", "contrast"):
        basis, _ = build_basis(FORGET, RETAIN, whole_layer(rule, max_rank=1))
        assert {b.rank for b in basis.sites.values()} == {1}


def test_the_retain_mean_is_kept_when_it_is_taken_off():
    basis, _ = build_basis(FORGET, RETAIN, whole_layer("energy", 0.9999, 0.3, centering="mean of keep"))
    for name, b in basis.sites.items():
        mean = RETAIN.moments[name].mean
        assert (edit_matrix(b.u.double(), b.m.double()) @ mean - mean).norm() < 1e-5 * mean.norm()


@pytest.mark.parametrize(
    ("forget", "retain", "settings", "words"),
    [
        (
            FORGET,
            captured("retain", ["Miplo", "ZORBO"], [rows(False, 3), rows(False, 4)]),
            whole_layer(),
            "zorbo': in both lists",
        ),
        (RETAIN, None, whole_layer(), "of prompts to keep"),
        (FORGET, FORGET, whole_layer(), "of prompts to forget"),
        (
            FORGET,
            captured("retain", ["m"], [rows(False, 3), rows(False, 4)], heads=2),
            whole_layer(),
            "different models: layer input_blocks.1.1",
        ),
        (
            FORGET,
            captured("retain", ["twin"], [rows(True, 1), rows(True, 2)]),
            whole_layer("energy", 0.9, 1.0),
            "would change nothing",
        ),
        (FORGET, RETAIN, whole_layer(keep_weight=1e12), "would change nothing"),
        (
            FORGET,
            captured("retain", ["m"], [rows(False, 3), rows(False, 4)], prompts=["a photo of Zorbo", "zorbo"]),
            whole_layer(),
            "zorbo': in both lists",
        ),
        (
            FORGET,
            captured("retain", ["m"], [rows(False, 3), rows(False, 4)], weights="cd"),
            whole_layer(),
            "the attention weights",
        ),
    ],
)
def test_what_would_not_work_is_refused(forget, retain, settings, words):
    with pytest.raises(PureError, match=words):
        build_basis(forget, retain, settings)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rule": "x"}, "rule must be one of"),
        ({"centering": "x"}, "centering must be one of"),
        ({"structure": "x"}, "structure must be one of"),
        ({"forget_energy": float("nan")}, "forget_energy must be"),
        ({"keep_energy": 1.5}, "keep_energy must be"),
        ({"keep_weight": -1.0}, "keep_weight must be"),
        ({"keep_weight": float("nan")}, "keep_weight must be"),
    ],
)
def test_settings_that_are_not_offered_are_refused(values, words):
    with pytest.raises(PureError, match=words):
        whole_layer(**values)


def test_weak_bases_are_warned_of():
    _, warnings = build_basis(FORGET, RETAIN, whole_layer("energy", 0.3, 0.9, centering="none"))
    assert any("Rank 1" in w for w in warnings)
    assert any("less than a tenth" in w for w in warnings)
    _, warnings = build_basis(
        FORGET, captured("retain", ["twin"], [rows(True, 11, 500), rows(True, 12, 500)]), whole_layer("contrast")
    )
    assert any("less than half of the concept" in w for w in warnings)
    assert build_basis(FORGET, RETAIN, whole_layer())[1] == []  # control


def test_captures_made_in_different_ways_are_warned_of():
    basis, warnings = build_basis(
        FORGET, captured("retain", ["m"], [rows(False, 3, 200), rows(False, 4, 200)], steps=4, seed=7), whole_layer()
    )
    assert len(warnings) == 1
    assert "differ in steps, seed" in warnings[0]
    assert basis.recipe.capture == FORGET.settings


def test_without_retain_the_edit_does_not_depend_on_the_scale_of_the_activations():
    bases = [
        build_basis(captured("forget", ["zorbo"], [scale * rows(True, 1), scale * rows(True, 2)]), None, whole_layer())[
            0
        ]
        for scale in (1.0, 1e-3)
    ]
    for one, other in zip(*(b.sites.values() for b in bases), strict=True):
        assert one.rank == other.rank > 1
        assert_close(one.u @ one.m.T, other.u @ other.m.T, rtol=0, atol=1e-5)


def test_the_basis_is_the_same_to_the_bit_when_built_twice():
    for settings in WORKING:
        one, two = (build_basis(FORGET, RETAIN, settings)[0] for _ in range(2))
        assert all(
            torch.equal(one.sites[n].u, two.sites[n].u) and torch.equal(one.sites[n].m, two.sites[n].m) for n in LAYERS
        )


def test_merging_captures_adds_rows_and_concepts_and_refuses_what_does_not_fit():
    a, b = (captured("retain", [c], [rows(False, s), rows(False, s + 1)]) for c, s in (("x", 50), ("y", 60)))
    merged = merge_activations(a, b)
    assert merged.count == 120
    assert merged.anchors.concepts == ("x", "y")
    whole = captured("retain", ["x", "y"], [torch.cat([rows(False, 50 + i), rows(False, 60 + i)]) for i in range(2)])
    one, two = (build_basis(FORGET, r, whole_layer())[0].sites[LAYERS[0]] for r in (merged, whole))
    assert_close(edit_matrix(one.u, one.m), edit_matrix(two.u, two.m), rtol=0, atol=1e-5)
    for change, words in (
        ({"steps": 9}, "differ in steps"),
        ({"weights": "cd"}, "differ in the attention weights"),
        ({"cfg": 2.0}, "differ in cfg"),
    ):
        with pytest.raises(PureError, match=words):
            merge_activations(a, captured("retain", ["y"], [rows(False, 1), rows(False, 2)], **change))
    with pytest.raises(PureError, match="one kind only"):
        merge_activations(a, FORGET)
    with pytest.raises(PureError, match="different models"):
        merge_activations(a, captured("retain", ["y"], [rows(False, 1), rows(False, 2)], heads=8))


def test_a_twin_among_the_kept_is_named_and_a_neighbour_is_not():
    away = 0.3 * SHARED[:, 2]
    sides = [away, -away, 0.3 * SHARED[:, 3]]
    kept = [rows(True, 5, 600), *(rows(False, 6 + i, 600) + side for i, side in enumerate(sides))]
    forget = captured("forget", ["zorbo"], [rows(True, 1, 600), rows(True, 2, 600)])
    retain = captured("retain", ["a twin", "one", "another", "third"], [torch.cat(kept), torch.cat(kept)])
    pairs = closest_kept(forget, retain)
    assert [(p.forgotten, p.kept) for p in pairs] == [("zorbo", "a twin")]
    assert pairs[0].likeness > TWIN
    warnings = build_basis(forget, retain, whole_layer())[1]
    assert any("'a twin' in the keep list is rendered almost like 'zorbo'" in w for w in warnings)
    others = captured("retain", ["one", "another", "third"], [torch.cat(kept[1:])] * 2)
    assert not any("almost like" in w for w in build_basis(forget, others, whole_layer())[1])  # control
    report = describe_basis(*build_basis(forget, others, whole_layer()), closest_kept(forget, others))
    assert "Closest to zorbo: " in report


def test_an_empty_keep_list_and_no_weight_are_warned_of():
    empty = captured("retain", [EMPTY], [rows(False, 3), rows(False, 4)])
    assert "Only the empty prompt is listed to keep" in build_basis(FORGET, empty, whole_layer())[1][0]
    assert "keep_weight is 0" in build_basis(FORGET, RETAIN, whole_layer(keep_weight=0))[1][0]
    assert build_basis(FORGET, RETAIN, whole_layer())[1] == []  # control


def test_a_weight_above_every_ratio_is_blamed_and_not_the_keep_list():
    with pytest.raises(PureError, match=r"at most \d+ times stronger .* keep_weight is 1e\+12: lower it"):
        build_basis(FORGET, RETAIN, whole_layer(keep_weight=1e12))
    _, warnings = build_basis(FORGET, RETAIN, whole_layer(keep_weight=1e4))
    assert any("keep_weight is 10000: lower it" in w for w in warnings)
    assert not any("twins" in w for w in warnings)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1e15])
@pytest.mark.parametrize("retain", [RETAIN, None], ids=["kept", "nothing kept"])
def test_a_basis_is_finite_whatever_the_scale_of_the_activations(scale, retain):
    """192 of 2,085 builds of tiny rows were not, without an error, and their charts raised OverflowError."""
    forget = captured("forget", ["zorbo"], [scale * rows(True, 1), scale * rows(True, 2)])
    for settings in WORKING:
        try:
            basis, _ = build_basis(forget, retain, settings)
        except PureError:  # said in words is as good
            continue
        for edit in basis.sites.values():
            assert all(torch.isfinite(getattr(edit, part)).all() for part in TENSORS)
        basis_chart(basis)


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
