"""The archive alone, unpacked into a fresh host.

It works, leaves the host as it was, and bears another copy of itself.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pack
import workflows
from browser import Browser, faults
from comfyui_server import Server
from get_comfyui import PACK, Host

OTHER = "another-copy-of-pure"


@pytest.fixture(scope="module")
def fresh(base, tmp_path_factory):
    """A base folder that has never seen the pack.

    The checkpoint, and the unpacked archive under the project's name, once and as a second copy.
    """
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "models").mkdir()
    (folder / "models" / "checkpoints").symlink_to(base / "models" / "checkpoints")
    for name in (PACK, OTHER):
        pack.unpack(folder / "custom_nodes" / name)
    return folder


def test_the_first_example_runs_from_the_unpacked_archive_beside_another_copy(fresh, running_chromium):
    assert not (fresh / "custom_nodes" / PACK / "tools").exists()
    with Server(fresh) as server:
        about_us = [line for line in server.log_text().splitlines() if PACK in line or OTHER in line]
        assert len([line for line in about_us if "seconds" in line]) == 2
        assert not [line for line in about_us if "FAILED" in line or "Cannot" in line or "Error" in line]
        workflow = json.loads(
            (fresh / "custom_nodes" / PACK / "example_workflows" / "step_by_step.json").read_text(encoding="utf-8")
        )
        graph = workflows.to_api(workflows.substitute(workflow), server.get("/object_info"))
        for i in workflows.find(graph, "PURE_ConceptPrompts"):
            graph[i]["inputs"]["templates"] = "a picture of {}"  # a sixth of the captures
        for i in workflows.find(graph, "PURE_CaptureOrdinary"):
            graph[i]["inputs"]["captions"] = "a red circle\na blue star in a meadow"
        assert faults(Browser(running_chromium, server).errors) == []  # each copy brings its script
        outputs = server.run(graph)
        before, after = (
            [np.asarray(Image.open(server.file(i)), dtype=np.int16) for i in outputs[n]["images"]]
            for n in workflows.find(graph, "SaveImage")
        )
    assert len(before) == len(after) > 0
    assert np.abs(before[0] - after[0]).mean() > 2


def imported(folder, pack_folder):
    """What changes in a host when it imports a pack.

    Whether it loaded, named parts of its state, functions and classes that are others now, and how many were looked at.
    """
    host = Host.load()
    command = [
        host.python,
        str(Path(__file__).with_name("import_state.py")),
        host.source,
        str(folder),
        str(pack_folder),
    ]
    done = subprocess.run(command, cwd=host.source, env=host.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("STATE "))[6:])


def test_importing_the_pack_registers_one_folder_and_its_nodes_and_changes_nothing_else(fresh, tmp_path):
    loaded, changed, patched, looked_at = imported(fresh, fresh / "custom_nodes" / PACK)
    assert loaded
    assert looked_at > 5000
    assert patched == []
    assert set(changed) == {"folders", "node_ids"}
    folders_before, folders_after = changed["folders"]
    assert set(folders_after) - set(folders_before) == {"pure"}
    assert all(folders_after[k] == v for k, v in folders_before.items())
    assert {n for n in changed["node_ids"][1] if n not in changed["node_ids"][0]} == {
        n for n in changed["node_ids"][1] if n.startswith("PURE_")
    }
    bad = tmp_path / "bad_pack"  # control: a pack that does what packs must not
    bad.mkdir()
    (bad / "__init__.py").write_text(
        "import os, sys, comfy.samplers, comfy.sd\nos.environ['BAD'] = '1'\nsys.path.insert(0, "
        "'x')\ncomfy.sd.load_lora_for_models = lambda *a: None\n"
        "comfy.samplers.KSampler.sample = lambda *a: None\nNODE_CLASS_MAPPINGS = {}\n",
        encoding="utf-8",
    )
    _, changed, patched, _ = imported(fresh, bad)
    assert {"path", "environ"} <= set(changed)
    assert {
        "comfy.sd.load_lora_for_models",
        "comfy.samplers.KSampler.sample",
    } <= set(patched)
