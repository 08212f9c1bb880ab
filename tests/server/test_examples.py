"""Every shipped example workflow loads in the web UI, runs as it is by its Run button, and does what its name says."""

import copy
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import workflows
from browser import faults

PICTURED = ("SaveImage", "PreviewImage", "PURE_BuildBasis", "PURE_MeasureLeakage", "PURE_CompareImages")
REPORTING = (
    "PURE_CaptureActivations",
    "PURE_BuildBasis",
    "PURE_ApplyProjection",
    "PURE_MeasureLeakage",
    "PURE_CompareImages",
    "PURE_EraseConcept",
    "PURE_SaveLoRA",
    "PURE_SaveCheckpoint",
)


class Examples:
    """What each example did: first by Run in the web UI, then its API twin in the same server; each runs once."""

    def __init__(self, server, ui):
        self.server, self.ui, self.done = server, ui, {}

    def __getitem__(self, name):
        if name not in self.done:
            workflow = workflows.substitute(workflows.load(name))
            graph = workflows.to_api(workflow, self.server.get("/object_info"))
            self.ui.load(workflow, name)
            loaded, kept = self.ui.nodes(), self.ui.saved_again(name)
            self.ui.fit()
            self.ui.shot(f"{name}-loaded")
            seen = self.ui.run()
            self.ui.fit()
            self.ui.shot(f"{name}-ran")
            self.done[name] = SimpleNamespace(
                graph=graph,
                loaded=loaded,
                kept=kept,
                seen=seen,
                ran=self.ui.nodes(),
                prompt=self.ui.prompt(),
                shown=self.ui.page.evaluate("app.nodeOutputs"),
                errors=list(self.ui.errors),
                outputs=self.server.run(graph, seconds=900),
            )
        return self.done[name]


@pytest.fixture(scope="module")
def examples(server, ui):
    return Examples(server, ui)


def pixels(server, output):
    return np.asarray(Image.open(server.file(output["images"][0])), dtype=np.int16)


def overlaps(nodes):
    """Pairs of nodes of which one covers a part of the other."""
    found = []
    for i, a in enumerate(nodes):
        for b in nodes[:i]:
            (x, y, w, h), (left, top, width, height) = a["box"], b["box"]
            if x < left + width and left < x + w and y < top + height and top < y + h:
                found.append((a["title"], b["title"]))
    return found


def test_faults_are_found():
    ours = [
        (
            "TypeError: x is undefined\n at setup (http://127.0.0.1/extensions/pure-concept-unlearning/js/report.js:9)",
            "",
        ),
        ("Extension named 'PURE.Report' already registered.", ""),
    ]
    assert (
        faults(
            [
                *ours,
                ("TypeError: x\n at http://127.0.0.1/assets/index.js", ""),
                ("Failed to load resource: 404", "http://127.0.0.1/api/userdata/comfy.templates.json"),
            ]
        )
        == ours
    )


def test_overlaps_are_found():
    assert overlaps(
        [
            {"title": "a", "box": [0, 0, 10, 10]},
            {"title": "b", "box": [9, 9, 10, 10]},
            {"title": "c", "box": [30, 0, 1, 1]},
        ]
    ) == [("b", "a")]


@pytest.mark.parametrize("name", workflows.names())
def test_it_loads_whole_and_can_be_read(examples, name):
    loaded, ran = examples[name].loaded, examples[name].ran
    assert [n["type"] for n in loaded if not n["registered"] or n["errors"]] == []
    assert all(n["box"][2] > 0 for n in (*loaded, *ran))  # what is not drawn overlaps nothing
    assert overlaps(loaded) == []
    assert overlaps(ran) == []
    assert [n["title"] for n in loaded if n["type"] == "MarkdownNote"] == ["Read me"]
    assert faults(examples[name].errors) == []


@pytest.mark.parametrize("name", workflows.names())
def test_saving_and_loading_again_keeps_all_of_it(examples, name):
    """Values, titles, notes, groups, links, places, bypassed nodes."""
    first, second = examples[name].kept
    assert first == second
    assert len(first["nodes"]) == len(examples[name].loaded)
    assert len(first["groups"]) >= 2


@pytest.mark.parametrize("name", workflows.names())
def test_the_web_ui_queues_what_the_api_twin_says(examples, name):
    """So both give the same pictures: the host takes the second one's from its cache."""
    one = examples[name]
    assert one.prompt == one.graph
    for i in workflows.find(one.graph, "SaveImage"):
        assert one.shown[i]["images"] == one.outputs[i]["images"]


@pytest.mark.parametrize("name", workflows.names())
def test_pictures_and_reports_are_on_the_nodes_after_a_run(examples, name):
    nodes = {n["id"]: n for n in examples[name].ran}
    for i, node in examples[name].graph.items():
        kind = node["class_type"]
        assert kind not in PICTURED or nodes[i]["pictures"] >= 1, (i, kind)
        assert kind not in REPORTING or nodes[i]["text"] or from_the_cache(examples[name], i), (i, kind)
    assert not from_the_cache(examples["1_start_here_erase_a_concept"], "6")  # control: there the one node runs


def from_the_cache(example, node):
    """Whether the one node's parts were all in the host's cache, from an example before: then it shows nothing new."""
    ran = {part for part, _, _ in example.seen["steps"]}
    one = example.graph[node]["class_type"] == "PURE_EraseConcept"
    return one and not any(part.startswith(f"{node}.") for part in ran)


@pytest.mark.parametrize("name", workflows.names())
def test_progress_is_shown(examples, name):
    """Of every sampler, and of every capture that an example before has not left in the cache."""
    one = examples[name]
    assert len({t for t in one.seen["titles"] if re.match(r"\[\d+%\]", t)}) >= 5  # the page's title counts
    for node in {node for node, _, _ in one.seen["steps"]}:
        steps = [value for i, value, _ in one.seen["steps"] if i == node]
        assert steps == sorted(steps)


def test_while_it_runs_a_capture_says_what_is_captured_and_what_it_costs(examples):
    one = examples["step_by_step"]
    for i, concept in zip(workflows.find(one.graph, "PURE_CaptureActivations"), ("miplo", "zorbo"), strict=True):
        text = one.seen["texts"][i][0]
        assert text.startswith("Capturing")
        assert "runs of the MODEL" in text
        assert concept in text
        done = [0, *(value for node, value, _ in one.seen["steps"] if node == i)]
        total, batch = (
            next(most for node, _, most in one.seen["steps"] if node == i),
            one.graph[i]["inputs"]["batch_size"],
        )
        assert done[-1] == total
        assert f"{total} runs of the MODEL" in text
        # each step of each batch
        assert len(done) > one.graph[i]["inputs"]["recorded_steps"]
        assert max(b - a for a, b in itertools.pairwise(done)) <= batch


@pytest.mark.parametrize("name", workflows.names())
def test_its_pictures_differ(server, examples, name):
    one = examples[name]
    pictures = [pixels(server, one.outputs[i]) for i in workflows.find(one.graph, "SaveImage")]
    if name == "tune_the_amount":  # one node shows all: of each amount the same seeds
        (saved,) = workflows.find(one.graph, "SaveImage")
        pictures = [pixels(server, {"images": [image]}) for image in one.outputs[saved]["images"][::3]]
        assert len(pictures) == 3
    elif len(pictures) == 1:  # the one node draws its own before and after: beside it, the original MODEL's picture
        pictures.append(redrawn(server, one.graph, loader_of(one.graph)))
    assert len(pictures) >= 2
    assert all(np.abs(pictures[0] - other).mean() > 2 for other in pictures[1:])


def loader_of(graph):
    """The node that the original MODEL comes from."""
    return [*workflows.find(graph, "CheckpointLoaderSimple"), *workflows.find(graph, "UNETLoader")][0]


def redrawn(server, graph, model, **more):
    """The first picture of a graph as the MODEL of another of its nodes draws it."""
    graph = {**copy.deepcopy(graph), **more}
    sampler, saved = (workflows.find(graph, kind)[0] for kind in ("KSampler", "SaveImage"))
    graph[sampler]["inputs"]["model"] = [model, 0]
    return pixels(server, server.run(workflows.upstream(graph, saved))[saved])


@pytest.mark.parametrize(
    ("name", "kind", "folder"),
    [("save_a_checkpoint", "PURE_SaveCheckpoint", "checkpoints"), ("save_as_lora_and_reuse", "PURE_SaveLoRA", "loras")],
)
def test_it_saves_what_its_loader_then_draws(server, base, examples, name, kind, folder):
    one = examples[name]
    (saver,) = workflows.find(one.graph, kind)
    text = one.outputs[saver]["text"][0]
    assert "Saved pure_miplo_0" in text
    assert "Warning" not in text
    file = base / "output" / folder / re.search(r"Saved (\S+\.safetensors)", text)[1]
    if folder == "checkpoints":
        reload = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": file.name}}
    else:
        inputs = {"model": [loader_of(one.graph), 0], "lora_name": file.name, "strength_model": 1.0}
        reload = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    try:
        edited = pixels(server, one.outputs[workflows.find(one.graph, "SaveImage")[0]])
        assert np.abs(redrawn(server, one.graph, "reload", reload=reload) - edited).max() <= 4
        original = redrawn(server, one.graph, loader_of(one.graph))
        assert np.abs(original - edited).max() > 40  # control: the edit shows
    finally:
        file.unlink()
