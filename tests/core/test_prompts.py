import pytest
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.prompts import EMPTY, PHRASINGS, anchor_prompts, make_prompts


def test_six_phrasings_a_concept_and_the_empty_prompt_to_keep():
    forget, keep, _ = make_prompts("zorbo\nmiplo", "fintolo")
    assert len(forget.pairs) == 12
    assert forget.concepts == ("zorbo", "miplo")
    assert forget.role == "forget"
    assert ("zorbo", "a photo of zorbo") in forget.pairs
    assert keep.pairs[-1] == (EMPTY, "")
    assert len(keep.pairs) == 7
    assert keep.role == "retain"
    assert len(make_prompts("zorbo", "fintolo", keep_empty_prompt=False)[1].pairs) == 6


def test_blank_and_repeated_lines_are_ignored_and_counted():
    prompts, keep, listing = make_prompts("Van  Gogh\n\n  van gogh \n\t\nMonet", "Hokusai")
    assert prompts.concepts == ("Van Gogh", "Monet")
    assert "2 blank lines ignored" in listing
    assert "1 repeated line ignored" in listing
    assert len(listing.splitlines()) == 2 + len(prompts.pairs) + len(keep.pairs)


def test_own_templates_replace_the_presets_and_free_text_uses_none():
    assert anchor_prompts("zorbo", "forget", templates="{} at night\n{} on grass").texts == (
        "zorbo at night",
        "zorbo on grass",
    )
    free = anchor_prompts("a round thing {with braces}", "forget", kind="free text", templates="a photo of {}")
    assert free.texts == ("a round thing {with braces}",)


def test_beside_a_style_whole_prompts_are_kept():
    forget, keep, _ = make_prompts("Van Gogh", "a photo of a cat", kind="artistic style")
    assert "a painting by Van Gogh" in forget.texts
    assert keep.texts == ("a photo of a cat", "")


@pytest.mark.parametrize("form", ["{} {a|b}", "{}, {red|blue}", "a {red|blue} {} x"])
def test_a_template_may_have_choices_of_the_frontend(form):
    assert anchor_prompts("zorbo", "forget", templates=form).texts == (form.replace("{}", "zorbo"),)


@pytest.mark.parametrize("form", ["no place", "{} and {}", "{{}}", "a {red|blue} x"])
def test_a_template_without_one_place_is_refused(form):
    with pytest.raises(PureError, match="exactly once"):
        anchor_prompts("zorbo", "forget", templates=form)


@pytest.mark.parametrize(
    ("forget", "keep", "words"),
    [
        (" \n", "a", "forget box is empty"),
        ("a\nVan  Gogh", "b\nvan gogh", "'Van Gogh': in both lists"),
        ("zorbo", "a photo of zorbo", "'a photo of zorbo': in both lists"),
    ],
)
def test_lists_that_cannot_work_are_refused(forget, keep, words):
    with pytest.raises(PureError, match=words):
        make_prompts(forget, keep)
    make_prompts("zorbo", "miplo")  # control


def test_a_preset_that_does_not_exist_is_refused_by_name():
    with pytest.raises(PureError, match=r"kind must be one of .* it is 'nonsense'"):
        make_prompts("a", "b", kind="nonsense")


@pytest.mark.parametrize(
    ("line", "warned"),
    [
        ("saber (fate)", r"saber \(fate\)"),
        (r"saber \(fate\)", None),
        ("(red:1.2) car", None),
        ("a plain car", None),
    ],
)
def test_parentheses_that_the_host_reads_as_emphasis_are_warned_of(line, warned):
    listing = make_prompts("zorbo", line)[2]
    assert ("Warning" in listing) == (warned is not None)
    assert warned is None or f"Write {warned} for" in listing


def test_every_preset_but_free_text_has_six_distinct_templates():
    for name, forms in PHRASINGS.items():
        assert len(set(forms)) == (1 if name == "free text" else 6)
        assert all(form.count("{}") == 1 for form in forms)


def test_an_empty_keep_box_keeps_the_empty_prompt():
    assert make_prompts("zorbo", "")[1].pairs == ((EMPTY, ""),)
