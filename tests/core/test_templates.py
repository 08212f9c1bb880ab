"""The example workflows are those that tools/templates.py writes, and fit a window."""

import json

import pytest
import templates

import workflows

WIDEST = 1700


def test_there_is_a_file_for_each_and_no_other():
    assert {path.stem for path in workflows.EXAMPLES.glob("*.json")} == set(templates.TEMPLATES)
    assert {path.stem for path in workflows.EXAMPLES.glob("*.jpg")} == set(templates.TEMPLATES)


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_the_file_is_what_the_tool_writes(name):
    assert (workflows.EXAMPLES / f"{name}.json").read_text(encoding="utf-8") == templates.text(name)


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_it_fits_a_window_and_begins_with_its_note(name):
    workflow = json.loads(templates.text(name))
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    assert max(x + width for x, _, width, _ in boxes) - min(x for x, *_ in boxes) <= WIDEST
    assert workflow["nodes"][0]["type"] == "MarkdownNote"
    assert workflow["nodes"][0]["pos"] == [min(x for x, *_ in boxes), min(y for _, y, *_ in boxes)]
    assert "ds" in workflow["extra"]
    names = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "SaveImage"]
    assert len(set(names)) == len(names) >= 1
