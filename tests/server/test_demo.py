"""The demo, whole: the example workflow through the server, 6 pictures of each kind and MODEL, and what it leaves
behind."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import demo
import workflows
from get_comfyui import Host
from mini_sd.layout import full_state


def test_the_examples_differ_from_what_ships_in_the_table_alone():
    replaced = set()
    for name in workflows.names():
        shipped, used = workflows.load(name), workflows.substitute(workflows.load(name))
        for a, b in zip(shipped["nodes"], used["nodes"], strict=True):
            values = a["widgets_values"]
            for i, (before, after) in enumerate(zip(values, b["widgets_values"], strict=True)):
                if before != after:
                    entry = workflows.entry_of(a["type"], before, i - len(values))
                    assert workflows.SUBSTITUTIONS[entry] == after
                    replaced.add(entry)
            b["widgets_values"] = a["widgets_values"]
        assert used == shipped
        models = [m for node in shipped["nodes"] for m in node["properties"].get("models", [])]
        # the frontend offers the download
        assert models
        assert all(m["name"] in workflows.SUBSTITUTIONS for m in models)
        assert (workflows.EXAMPLES / f"{name}.jpg").exists()
    assert replaced == set(workflows.SUBSTITUTIONS)  # no entry that nothing uses


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.run(folder, 6)


def test_the_judge_agrees_that_the_character_is_gone_and_the_others_are_not(run):
    _, report = run
    assert report["counts"] == dict.fromkeys(demo.KINDS, 6)
    assert min(report["before"].values()) >= 0.95  # control: the original draws them all
    assert report["after"]["named"] <= 0.1
    assert report["after"]["name_free"] <= 0.25
    assert report["after"]["others"] >= 0.9
    assert min(report["scene_after"].values()) >= 0.8


def test_the_report_has_the_documented_keys_and_is_what_was_written(run):
    folder, report = run
    assert set(report) == set(demo.REPORT_KEYS)
    assert json.loads((folder / "report.json").read_text()) == report
    assert len(report["ranks"]) >= 7
    assert report["versions"]["comfyui"] == Host.load().version
    assert set(report["seconds"]) == {"setup", "edit", "pictures", "save"}
    assert report["settings"]["PURE_BuildBasis"]["rule"] in ("energy", "contrast")
    with Image.open(folder / "before_after.png") as sheet:
        assert sheet.size == (838, 660)


def test_the_saved_checkpoint_differs_in_the_edited_weights_alone(run):
    saved, original = load_file(run[0] / "erased.safetensors"), full_state()
    name = "model.diffusion_model.{}"
    edited = {k for k in original if k.startswith(name.format("")) and k.endswith("attn2.to_v.weight")}
    assert len(edited) == 7
    for key, weight in original.items():
        if key.startswith(name.format("")):
            assert torch.equal(saved[key], weight) == (key not in edited), key
