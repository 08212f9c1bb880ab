"""Every shipped example workflow runs as it is, and does what its name says; nodes do not lie over one another."""
import copy
import re

import numpy as np
import pytest
from PIL import Image

import workflows


def boxes(workflow):
    return [(*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in workflow["nodes"]]


@pytest.mark.parametrize("name", workflows.names())
def test_it_can_be_read(name):
    placed = boxes(workflows.load(name))
    for i, (left, top, right, bottom) in enumerate(placed):
        for other in placed[:i]:
            assert left >= other[2] or right <= other[0] or top - 30 >= other[3] or bottom <= other[1] - 30, (placed[i], other)


@pytest.fixture(scope="module")
def ran(server):
    """Queued one after the other, so that what they share comes from the host's cache."""
    graphs = {name: workflows.to_api(workflows.substitute(workflows.load(name)), server.get("/object_info")) for name in workflows.names()}
    return graphs, {name: server.run(graph, seconds=900) for name, graph in graphs.items()}


def pixels(server, output):
    return np.asarray(Image.open(server.file(output["images"][0])), dtype=np.int16)


@pytest.mark.parametrize("name", workflows.names())
def test_it_runs_and_its_pictures_differ(server, ran, name):
    graphs, outputs = ran
    pictures = [pixels(server, outputs[name][i]) for i in workflows.find(graphs[name], "SaveImage")]
    assert len(pictures) >= 2 and all(np.abs(pictures[0] - other).mean() > 2 for other in pictures[1:])


@pytest.mark.parametrize(("name", "kind", "folder"), [("save_a_checkpoint", "PURE_SaveCheckpoint", "checkpoints"), ("save_as_lora_and_reuse", "PURE_SaveLoRA", "loras")])
def test_it_saves_what_its_loader_then_draws(server, base, ran, name, kind, folder):
    graphs, outputs = ran
    graph, (saver,) = copy.deepcopy(graphs[name]), workflows.find(graphs[name], kind)
    text = outputs[name][saver]["text"][0]
    assert "Saved pure_" in text and "Warning" not in text
    file = base / "output" / folder / re.search(r"Saved (\S+\.safetensors)", text)[1]
    try:
        if folder == "checkpoints":
            graph["reload"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": file.name}}
        else:
            graph["reload"] = {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": file.name, "strength_model": 1.0}}
        graph["11"]["inputs"]["model"] = ["reload", 0]
        del graph[saver]
        again = server.run(graph)
        before, after = (pixels(server, {**outputs[name], **again}[i]) for i in workflows.find(graph, "SaveImage"))
        assert np.abs(before - after).max() <= 4
    finally:
        file.unlink()
