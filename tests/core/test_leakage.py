"""The measure of what is left of a concept, against its definition."""

import pytest
import torch
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.leakage import (
    as_numbers,
    describe_leakage,
    halves_of,
    leakage,
    measure,
    movement,
)
from pure_pack.pure_core.prompts import Prompts, anchor_prompts

from spaces import orthonormal

D = 24
CONCEPT, REST = orthonormal(D, 8, 1).split([2, 6], 1)


def rows(concept, seed, n=40):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, 6, dtype=torch.float64, generator=g) @ REST.T + 4 * REST[:, 0]
    return h + (torch.randn(n, 2, dtype=torch.float64, generator=g) + 8) @ CONCEPT.T if concept else h


def test_leakage_is_what_is_left_along_what_the_concept_adds():
    kept, added = rows(False, 6).mean(0), CONCEPT @ torch.tensor([3.0, 1.0], dtype=torch.float64)
    noise = REST[:, 2] * 5  # in one half of the probes alone
    before, found = kept + added + noise, kept + added
    assert leakage(found, before, kept + 0.25 * added, kept, kept) == pytest.approx(0.25)
    assert leakage(found, before, before, kept, kept) == 1.0
    assert leakage(found, before, kept - added, kept, kept) == pytest.approx(-1.0)
    assert leakage(found, kept + noise, kept, kept, kept) == 1.0  # the halves have nothing in common
    assert movement(before[None], 1.5 * before[None]) == pytest.approx(0.5)


def edited(strength, directions=CONCEPT):
    """What a projection leaves of fresh rows, measured at one site."""

    def cut(h):
        return h - strength * (h @ directions) @ directions.T

    before, kept = rows(True, 8), rows(False, 9)
    labels = [("zorbo", i % 2) for i in range(len(before))]
    return measure({"a": before}, {"a": cut(before)}, labels, {"a": kept}, {"a": cut(kept)})


def test_the_report_says_what_to_think_of_it():
    texts = [describe_leakage(edited(s), ("miplo",))[0] for s in (0.0, 0.2, 0.7, 1.0)]
    wanted = ("no edit between them", "Most of the concept is still", "Some of the concept is still", "Little of the")
    for text, words in zip(texts, wanted, strict=True):
        assert text.startswith(("Both", "Most", "Some", "Little"))
        assert words in text
    assert "moved a lot" in describe_leakage(edited(1.0, REST), ("miplo",))[0]
    assert "moved a lot" not in texts[3]
    numbers = as_numbers(edited(1.0))
    assert numbers["leakage"] == numbers["layers"]["a"]["leakage"] < 0.3
    assert numbers["movement"] < 1e-9


def test_a_model_that_renders_nothing_leaks_nothing_and_has_moved():
    """It read .56 where rows were taken less the mean of the unedited model."""
    before, kept = rows(True, 8), rows(False, 9)
    labels = [("zorbo", i % 2) for i in range(len(before))]
    measured = measure({"a": before}, {"a": 0 * before}, labels, {"a": kept}, {"a": 0 * kept})
    assert measured.leakage == 0
    assert measured.movement == pytest.approx(1.0)


def test_concepts_are_measured_each_on_its_own():
    """One erased, one not: mixed, half of both would read as left."""
    first, second, kept = rows(True, 8), rows(True, 10) + 6 * REST[:, 1], rows(False, 9)
    after = {"a": torch.cat([first - (first @ CONCEPT) @ CONCEPT.T, second])}
    labels = [("gone", i % 2) for i in range(40)] + [("there", i % 2) for i in range(40)]
    measured = measure({"a": torch.cat([first, second])}, after, labels, {"a": kept}, {"a": kept})
    assert measured.concepts["gone"] < 0.1
    assert measured.concepts["there"] == pytest.approx(1.0)


def test_probes_that_do_not_agree_are_said():
    kept, labels = rows(False, 9), [("zorbo", i % 2) for i in range(40)]
    apart = kept.mean(0) + torch.stack([(6 if i % 2 else -6) * REST[:, 3] + 0.1 * REST[:, 4] for i in range(40)])
    text, warnings = describe_leakage(measure({"a": apart}, {"a": apart}, labels, {"a": kept}, {"a": kept}), ("b",))
    assert "do not agree" in warnings[0]
    assert text.startswith("Warning: The probes of 'zorbo'")
    assert describe_leakage(edited(0.6), ("miplo",))[1] == []  # control


def test_probes_are_halved_within_each_concept_whatever_their_order():
    probes = anchor_prompts("zorbo\na golden monster", "forget")
    halves = halves_of(probes)
    assert set(halves) == set(probes.texts)
    for concept in probes.concepts:
        assert sorted(halves[text] for name, text in probes.pairs if name == concept) == [0, 0, 0, 1, 1, 1]
    assert halves_of(Prompts("forget", probes.pairs[::-1])) == halves
    with pytest.raises(PureError, match="'zorbo' has one probe only"):
        halves_of(anchor_prompts("zorbo", "forget", templates="{}"))
