"""PURE Capture Ordinary Pictures: captured once per MODEL, kept as a file, and used again only for what it is of."""

import os

import folder_paths
import pytest
import torch
from comfy.cli_args import args
from pure_pack.nodes.host import kept_captures, paths, recording
from pure_pack.nodes.ordinary import CaptureOrdinary
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.ordinary import NEUTRAL, ORDINARY, PLAIN, TOGETHER

from benchmarks.erasers import call
from run_nodes import capture, prompts, with_lora

CAPTIONS = "a red circle\na blue star\na green square at night"
SMALL = {"captions": CAPTIONS, "steps": 2, "size": 64, "batch_size": 4}


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path


def ordinary(model, clip, **inputs):
    """What the node gives, and what it says."""
    result = call(CaptureOrdinary, model=model, clip=clip, **{**SMALL, **inputs}).result
    return result[0], result[1]


def files(models):
    return sorted(path.name for path in models.rglob("*") if path.is_file())


@pytest.fixture
def no_more(monkeypatch):
    """From here on nothing can be captured."""

    def refuse():
        monkeypatch.setattr(recording, "capture", lambda *_: pytest.fail("captured again"))

    return refuse


def test_it_records_what_a_capture_of_the_same_prompts_does(mini, models):
    got, _ = ordinary(*mini[:2])
    neutral = NEUTRAL["pictures"]
    keep = prompts("\n".join([CAPTIONS, *neutral]), role="retain", kind="free text")
    same = capture(mini, keep, steps=2, recorded_steps=2)
    assert got.anchors.concepts == (TOGETHER, PLAIN)
    assert sorted(got.anchors.prompts) == sorted(same.anchors.prompts)
    assert got.count == same.count == (4 + len(neutral)) * 2
    assert got.rows == (4 * 2, len(neutral) * 2)
    for name, sums in got.sums.items():
        of = [same.anchors.concepts.index(text) for text in neutral]
        torch.testing.assert_close(sums[1], same.sums[name][of].sum(0), rtol=1e-5, atol=1e-5)
    for name, moments in same.moments.items():
        torch.testing.assert_close(got.moments[name].second_moment(), moments.second_moment())
        assert not torch.allclose(got.moments[name].second_moment(), moments.second_moment() * 1.01)  # control


def test_the_next_time_it_comes_from_its_file_bit_by_bit(mini, models, no_more):
    first, told = ordinary(*mini[:2])
    assert len(files(models)) == 1
    assert "Kept for next time" in told
    no_more()
    again, told = ordinary(*mini[:2], batch_size=1)
    assert told.startswith("Used ")
    for name, moments in first.moments.items():
        assert torch.equal(again.moments[name].factor, moments.factor)
    assert len(files(models)) == 1


@pytest.mark.parametrize(
    ("changed", "inputs"),
    [
        (lambda model: model, {"captions": "a red circle"}),
        (lambda model: model, {"steps": 3}),
        (lambda model: model, {"size": 128}),
        (with_lora, {}),
    ],
    ids=["captions", "steps", "size", "LoRA"],
)
def test_anything_that_changes_the_rows_is_captured_again(mini, models, changed, inputs):
    ordinary(*mini[:2])
    _, told = ordinary(changed(mini[0]), mini[1], **inputs)
    assert told.startswith("Captured")
    assert len(files(models)) == 2


def test_a_file_that_is_damaged_or_of_something_else_is_refused_by_its_path(mini, models):
    ordinary(*mini[:2])
    (path,) = models.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(PureError, match="delete it, and run again") as refused:
        ordinary(*mini[:2])
    assert str(path) in str(refused.value)
    path.unlink()
    ordinary(*mini[:2], captions="a blue star")
    (other,) = models.rglob("*.safetensors")
    other.rename(path)
    with pytest.raises(PureError, match="is not of this MODEL and these captions"):
        ordinary(*mini[:2])


def test_without_keep_file_nothing_is_written_or_read(mini, models):
    _, told = ordinary(*mini[:2], keep_file=False)
    assert files(models) == []
    assert "Kept" not in told


def test_the_files_that_were_used_longest_ago_go(mini, models, monkeypatch):
    monkeypatch.setattr(kept_captures, "MOST", 2)
    for second, captions in enumerate(("a red circle", "a blue star")):
        ordinary(*mini[:2], captions=captions)
        newest = max(models.rglob("*.safetensors"), key=lambda path: path.stat().st_ctime_ns)
        os.utime(newest, (second, second))
    first = {path.name for path in models.rglob("*.safetensors") if path.stat().st_mtime == 0}
    ordinary(*mini[:2], captions="a red circle")  # used again: now the other one is the oldest
    ordinary(*mini[:2], captions="a green square")
    assert len(files(models)) == 2
    assert first <= set(files(models))


def test_own_captions_are_not_written_where_the_host_writes_no_metadata(mini, models, monkeypatch):
    monkeypatch.setattr(args, "disable_metadata", True)
    ordinary(*mini[:2])
    assert files(models) == []


def test_a_folder_that_cannot_be_written_is_a_warning_and_no_failure(mini, models):
    (models / "pure").write_text("a file where the folder should be")
    got, told = ordinary(*mini[:2])
    assert got.count == (4 + len(NEUTRAL["pictures"])) * 2
    assert told.startswith("Warning: The result could not be kept")


def test_a_kept_file_in_a_folder_that_may_not_be_changed_is_used(mini, models, monkeypatch):
    ordinary(*mini[:2])

    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(kept_captures.os, "utime", refused)
    assert ordinary(*mini[:2])[1].startswith("Used ")


@pytest.mark.parametrize("language", ORDINARY)
def test_the_packs_own_captions_are_many_and_distinct(language):
    captions = ORDINARY[language]
    assert len(captions) >= 64
    assert len({c.casefold() for c in captions}) == len(captions)
    assert not any(c != c.strip() or "(" in c for c in captions)


def test_what_is_kept_is_not_in_the_lists_of_saved_files(mini, models, monkeypatch):
    folders = ([str(models / "pure"), str(models / "output" / "pure")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "pure", folders)
    ordinary(*mini[:2])
    (path,) = models.rglob("*.safetensors")
    assert str(path.relative_to(models / "pure")) in folder_paths.get_filename_list("pure")  # control: the host's list
    assert paths.saved_files() == []
    own = models / "output" / "pure" / "ordinary" / "mine.safetensors"
    own.parent.mkdir(parents=True)
    path.rename(own)
    assert paths.saved_files() == [os.path.join("ordinary", "mine.safetensors")]
