"""Bases from activations: both rules, structures, centring, faults."""

import re
from dataclasses import replace

import pytest
import torch
from pure_pack.pure_core.activations import merge_activations
from pure_pack.pure_core.basis import TENSORS
from pure_pack.pure_core.build import build_basis, describe_basis
from pure_pack.pure_core.charts import basis_chart
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.leakage import movement
from pure_pack.pure_core.neighbours import TWIN, closest_kept
from pure_pack.pure_core.projection import edit_matrix
from pure_pack.pure_core.prompts import EMPTY
from torch.testing import assert_close

from captures import CONCEPT, FORGET, HEADS, LAYERS, RETAIN, SHARED, D, captured, rows, whole_layer
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


def test_a_report_begins_with_what_was_found():
    many = captured("forget", ["zorbo", "a round golden critter"], [torch.cat([rows(True, 1)] * 2), rows(True, 2, 120)])
    for forget, named in ((FORGET, "zorbo."), (many, "zorbo and 1 more.")):
        basis, warnings = build_basis(forget, RETAIN, whole_layer())
        told = describe_basis(basis, warnings).splitlines()
        assert told[0] == f"Found clearly in 2 of 2 layers: {named}"
        assert re.fullmatch(r"At best [\d,]+ times stronger than in what is kept\.", told[2])
    weak = replace(basis, sites={n: replace(e, m=e.m * 1e-9) for n, e in basis.sites.items()})
    assert describe_basis(weak, []).startswith("Not found clearly in any layer: zorbo")
