"""Zero-shot judgement: vectors to probabilities, and shares of what is seen before and after."""

import math

import pytest
import torch
from pure_pack.pure_core.charts import font
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.grid import _wrap
from pure_pack.pure_core.ordinary import NEUTRAL
from pure_pack.pure_core.zero_shot import (
    NOTHING,
    Judged,
    Proportion,
    as_numbers,
    captions,
    check_related,
    class_embedding,
    cosines,
    describe,
    probabilities,
    words_of,
)
from torch.testing import assert_close

KIND = "object or character"
WORDS = words_of("zorbo", "miplo\ntarnik", KIND)  # classes: 0 is forgotten, 1 and 2 are kept, 3 is nothing


def judged(before, after):
    """Of the classes that fit pictures best, 90 % sure of each."""

    def rows(best):
        return torch.full((len(best), 4), 0.1 / 3).scatter(1, torch.tensor(best)[:, None], 0.9)

    return Judged(WORDS, rows(before), rows(after))


def vectors(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 7


def test_a_class_is_the_direction_of_the_mean_of_its_texts_directions():
    texts = vectors(5, 16).double()
    mean = sum(t / t.square().sum().sqrt() for t in texts) / 5
    assert_close(class_embedding(texts), mean / mean.square().sum().sqrt(), rtol=1e-12, atol=0)
    louder = texts * torch.tensor([[1.0], [100.0], [1.0], [1.0], [1.0]])
    assert_close(class_embedding(louder), class_embedding(texts), rtol=1e-12, atol=1e-15)


def test_probabilities_are_the_softmax_of_a_hundred_cosines():
    pictures, classes = vectors(3, 16), vectors(4, 16) + 1
    for i, row in enumerate(probabilities(cosines(pictures, classes))):
        p = pictures[i].double()
        parts = [math.exp(100 * float(p @ c / (p.norm() * c.norm()))) for c in classes.double()]
        assert_close(row, torch.tensor([x / sum(parts) for x in parts], dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 16), (1, 10), (8, 16), (15, 16), (16, 16)])
def test_an_interval_ends_where_the_score_test_just_rejects(hits, n):
    for end in Proportion(hits, n).interval:
        if 0 < end < 1:
            assert (hits / n - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, rel=1e-5)
        else:
            assert end == hits / n


def test_nothing_counted_has_no_share():
    assert Proportion(0, 0).value is None
    assert Proportion(0, 0).interval == (0.0, 1.0)


def test_words_are_lines_in_the_kinds_phrasings_and_one_class_for_nothing():
    assert WORDS.names == ("zorbo", "miplo", "tarnik", NOTHING)
    assert WORDS.forgotten == 1
    assert "a photo of miplo" in WORDS.texts[1]
    assert WORDS.texts[3] == NEUTRAL["pictures"]
    tags = words_of("zorbo", "", "booru tags")
    assert tags.texts[1] == NEUTRAL["pictures"]  # CLIP sees no "best quality"
    assert "solo, zorbo" in tags.texts[0]


@pytest.mark.parametrize(
    ("boxes", "said"), [((" \n", "miplo"), "The forget box is empty"), (("zorbo", "Zorbo"), "in both lists")]
)
def test_lists_that_say_nothing_are_refused(boxes, said):
    with pytest.raises(PureError, match=said):
        words_of(*boxes, KIND)


def test_shares_before_and_after():
    seen = judged([0, 0, 0, 0, 1, 1, 2, 3], [0, 3, 3, 1, 1, 2, 2, 0])
    numbers = as_numbers(seen)
    assert (numbers["target_before"]["hits"], numbers["target_before"]["n"]) == (4, 8)
    assert numbers["target_after"]["share"] == 2 / 8  # one that stayed, and one that showed nothing before
    assert (numbers["retention"]["hits"], numbers["retention"]["n"]) == (2, 3)
    assert seen.retention([1]) == Proportion(1, 2)
    assert numbers["pictures"][3] == {"before": "zorbo", "after": "miplo"}
    assert captions(seen)[1] == f"90 % zorbo\n90 % {NOTHING}"


@pytest.mark.parametrize(
    ("before", "after", "begins", "warned"),
    [
        ([0] * 4 + [1], [3] * 4 + [1], "Gone: the concept is in none of 5 pictures; it was in 4.", 0),
        ([0] * 4 + [1], [0] + [3] * 3 + [1], "Mostly gone: the concept is in 1 of 5 pictures; it was in 4.", 0),
        (
            [0] * 4 + [1],
            [0] * 2 + [3] * 2 + [1],
            "Still there: the concept is in 2 of 5 pictures; it was in 4. What you keep: 1 of 1",
            0,
        ),
        ([1, 2], [1, 2], "Warning: No picture shows the concept before", 1),
        ([1, 2], [0, 0], "Warning: No picture shows the concept before", 1),
        ([0] + [1] * 4, [3] + [1] * 4, "Warning: Only 1 of 5 pictures showed the concept before", 1),
    ],
)
def test_the_first_sentence_is_the_verdict(before, after, begins, warned):
    text, warnings = describe(judged(before, after))
    assert text.startswith(begins)
    assert len(warnings) == warned


def test_advice_follows_what_went_wrong():
    gone, still, stayed, lost = [3] * 4, [0] * 4, [1] * 4, [3] * 4
    before = [0] * 4 + [1] * 4
    told = {
        (erased, kept): describe(judged(before, [*first, *second]))[0].splitlines()[0].partition("the same.")[2].strip()
        for erased, first in (("gone", gone), ("still", still))
        for kept, second in (("stayed", stayed), ("lost", lost))
    }
    assert told == {
        ("gone", "stayed"): "",
        ("still", "stayed"): "Raise amount, or describe the concept in more words.",
        ("gone", "lost"): "Lower amount, or add what changed to keep.",
        ("still", "lost"): "Describe the concept in more words, and add what changed to keep.",
    }
    assert "Raise amount" not in describe(judged([1] * 8, [0] * 2 + [1] * 6))[0]  # of a concept that was never seen
    one_of_four = describe(judged(before, [*gone, 1, 1, 1, 3]))[0]  # may be chance
    assert "3 of 4 pictures still show the same.\n" in one_of_four


def test_every_character_of_a_caption_can_be_drawn():
    missing = font(20).getmask("\uffff")
    for letter in {*"".join(captions(judged([0, 1], [3, 2])))} - {"\n", " "}:
        assert bytes(font(20).getmask(letter)) != bytes(missing), letter


def test_a_caption_keeps_both_its_lines_where_names_are_long():
    before, after = _wrap(f"90 % {'a yellow mouse creature with red cheeks ' * 3}\n80 % {NOTHING}", 300, 20)
    assert before.startswith("90 % a yellow")
    assert before.endswith("…")
    assert after == f"80 % {NOTHING}"
    assert all(font(20).getlength(line) <= 300 for line in (before, after))


def test_vectors_that_have_nothing_to_do_with_each_other_are_refused():
    unrelated = cosines(vectors(8, 768), vectors(10, 768).flip(1))
    for similar in (unrelated, torch.full((2, 3), math.nan)):
        with pytest.raises(PureError, match="not two halves of one CLIP"):
            check_related(similar)
    check_related(unrelated + 0.2)
