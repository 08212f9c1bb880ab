"""With the nodes' defaults the first three characters are gone, the others are not, and pictures stay pictures."""
import pytest

from benchmarks.erasers import Eraser, Share, describe, measure, unedited
from mini_sd import studio
from mini_sd.world import CHARACTERS
from run_nodes import prompts

STEPS = 6  # the unedited model draws everything right from 5


@pytest.fixture(scope="module")
def eraser(mini):
    return Eraser(mini)


def test_a_share_has_its_wilson_interval():
    assert Share(0, 200).interval == pytest.approx((0.0, 0.0188), abs=1e-4)
    assert Share(50, 100).interval == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_no_test_prompt_is_an_anchor():
    """What is described to the nodes is not what the pictures are asked for with."""
    test = studio.prompts()["test"]["name_free"]
    for name, creature in CHARACTERS.items():
        anchors = {prompt for _, prompt in prompts(f"{name}\n{describe(creature)}").pairs}
        assert len(anchors) == 12 and not anchors & {e["prompt"] for e in test[name]}


@pytest.mark.parametrize("name", ["fintolo", "miplo", "pelluna"])
def test_erased_kept_and_still_pictures(eraser, name):
    shares = measure(eraser.narrow(eraser.erase(name)), name, scenes=100, steps=STEPS)
    told = {k: str(v) for k, v in shares.items()}
    assert shares["named"].n >= 200 and shares["name_free"].n >= 200 and shares["others"].n >= 400
    assert shares["named"].value <= 0.05, told
    assert shares["name_free"].value <= 0.20, told
    assert shares["others"].value >= shares["others unedited"].value - 0.05, told
    for what in ("background", "style"):
        assert shares[what].value >= shares[f"{what} unedited"].value - 0.10, told
    asked = studio.prompts()["test"]["named"][name][:50]
    assert sum(s["character"] == name for s in unedited(asked, STEPS)) >= 48  # control: the unedited model draws it
