"""The measure of what is left of a concept, against its definition."""

import pytest
import torch
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.leakage import (
    as_numbers,
    concept_directions,
    describe_leakage,
    leakage,
    measure,
    movement,
    split_probes,
)
from pure_pack.pure_core.prompts import make_prompts

from spaces import orthonormal

D = 24
CONCEPT, REST = orthonormal(D, 8, 1).split([2, 6], 1)


def rows(concept, seed, n=40):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, 6, dtype=torch.float64, generator=g) @ REST.T + 4 * REST[:, 0]
    return h + (torch.randn(n, 2, dtype=torch.float64, generator=g) + 8) @ CONCEPT.T if concept else h


def test_directions_are_the_concepts_when_it_differs_from_the_rest_by_them_alone():
    mean = rows(False, 3, 2000).mean(0)
    concept = (
        mean + (torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 3) @ CONCEPT.T
    )
    u = concept_directions(concept, mean, 1.0)[:, :2]
    assert (u @ u.T - CONCEPT @ CONCEPT.T).norm() < 1e-9
    assert concept_directions(concept, mean, 0.5).shape[1] == 1  # control: less energy, fewer directions


def test_leakage_is_the_ratio_of_centred_energies_in_the_directions():
    before, mean = rows(True, 5), rows(False, 6).mean(0)
    after = before - 0.75 * (before - mean) @ CONCEPT @ CONCEPT.T
    defined = sum(float(((a - mean) @ CONCEPT).square().sum()) for a in after) / sum(
        float(((b - mean) @ CONCEPT).square().sum()) for b in before
    )
    assert leakage(before, after, CONCEPT, mean) == pytest.approx(defined) == pytest.approx(0.0625)
    assert movement(before, 1.5 * before) == pytest.approx(0.5)


def edited(strength, directions=CONCEPT):
    """Per layer what a projection leaves of fresh rows, measured."""

    def cut(h):
        return h - strength * (h @ directions) @ directions.T

    fit, before, kept = rows(True, 7), rows(True, 8), rows(False, 9)
    return measure({"a": fit}, {"a": before}, {"a": cut(before)}, {"a": kept}, {"a": cut(kept)})


def test_the_report_says_what_to_think_of_it():
    texts = [describe_leakage(edited(s), ("zorbo",), ("miplo",)) for s in (0.0, 0.2, 0.6, 1.0)]
    for text, words in zip(
        texts,
        ("no edit between them", "most of the concept is still", "this number cannot tell", "little of the concept"),
        strict=True,
    ):
        assert words in text
    assert (
        "moved a lot" in describe_leakage(edited(1.0, REST), ("zorbo",), ("miplo",)) and "moved a lot" not in texts[3]
    )
    numbers = as_numbers(edited(1.0))
    assert numbers["leakage"] == numbers["layers"]["a"]["leakage"] < 0.3 and numbers["movement"] < 1e-9


def test_probes_are_split_within_each_concept():
    probes, _ = make_prompts("zorbo\na golden monster", role="forget")
    found, measured = split_probes(probes)
    assert sorted(found.pairs + measured.pairs) == sorted(probes.pairs)
    assert found.concepts == measured.concepts == probes.concepts and len(found.pairs) == len(measured.pairs) == 6
    singles, _ = make_prompts("one prompt\nanother prompt\na third", preset="free text")
    assert [len(half.pairs) for half in split_probes(singles)] == [2, 1]
    with pytest.raises(PureError, match="at least two prompts"):
        split_probes(make_prompts("zorbo", templates="{}")[0])
