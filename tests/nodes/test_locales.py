"""Every string of every node in every language."""

import pytest

import locales

KEPT = {"CLIP", "CFG", "VAE", "JSON", "PURE LoRA"}  # the same word everywhere


def flat(tree, path=()):
    return (
        {path: tree}
        if isinstance(tree, str)
        else {k: v for key, value in tree.items() for k, v in flat(value, (*path, key)).items()}
    )


def test_english_is_what_the_schemas_say():
    assert locales.load("en") == locales.english(), "run tools/locales.py, then translate what is new"


@pytest.mark.parametrize("language", [language for language in locales.LANGUAGES if language != "en"])
def test_every_string_is_translated(language):
    english, translated = flat(locales.load("en")), flat(locales.load(language))
    assert translated.keys() == english.keys()
    same = {k for k, v in translated.items() if v == english[k] and v not in KEPT}
    assert all(k[-1] == "name" and english[k].upper() in KEPT for k in same), same
    assert len(set(translated.values())) > 0.9 * len(set(english.values()))  # control: not one filler for all
