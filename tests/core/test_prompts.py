import pytest
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.prompts import EMPTY, PRESETS, make_prompts


def test_six_phrasings_a_concept_and_the_empty_prompt_for_retain_only():
    forget, _ = make_prompts("zorbo\nmiplo")
    assert len(forget.pairs) == 12 and forget.concepts == ("zorbo", "miplo")
    assert ("zorbo", "a photo of zorbo") in forget.pairs
    retain, _ = make_prompts("zorbo", role="retain")
    assert retain.pairs[-1] == (EMPTY, "") and len(retain.pairs) == 7
    assert len(make_prompts("zorbo", role="retain", include_empty_prompt=False)[0].pairs) == 6


def test_blank_and_repeated_lines_are_ignored_and_counted():
    prompts, listing = make_prompts("Van  Gogh\n\n  van gogh \n\t\nMonet")
    assert prompts.concepts == ("Van Gogh", "Monet")
    assert "2 blank lines ignored" in listing and "1 repeated line ignored" in listing
    assert len(listing.splitlines()) == 1 + len(prompts.pairs)


def test_own_templates_replace_the_presets_and_free_text_uses_none():
    prompts, _ = make_prompts("zorbo", templates="{} at night\n{} on grass")
    assert [p for _, p in prompts.pairs] == ["zorbo at night", "zorbo on grass"]
    free, _ = make_prompts("a round thing {with braces}", preset="free text", templates="a photo of {}")
    assert [p for _, p in free.pairs] == ["a round thing {with braces}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"concepts": " \n"}, "no prompts"),
        ({"concepts": "a", "preset": "nonsense"}, "preset is 'nonsense'"),
        ({"concepts": "a", "role": "nonsense"}, "role is 'nonsense'"),
        ({"concepts": "a", "templates": "no place"}, "exactly once"),
        ({"concepts": "a", "templates": "{} and {}"}, "exactly once"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(arguments, words):
    with pytest.raises(PureError, match=words):
        make_prompts(**arguments)


def test_every_preset_but_free_text_has_six_distinct_templates():
    for name, forms in PRESETS.items():
        assert len(set(forms)) == (1 if name == "free text" else 6)
        assert all(form.count("{}") == 1 for form in forms)


def test_an_empty_prompt_alone_is_a_retain_set():
    assert make_prompts("", role="retain")[0].pairs == ((EMPTY, ""),)
