"""Disks that fill up, that are read-only, and a process that is killed while it saves.

Nothing half-written gets a name.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import folder_paths
import pytest
from pure_pack.nodes.basis import SaveBasis
from pure_pack.nodes.export import SaveCheckpoint, SaveLoRA
from pure_pack.nodes.host import saving
from pure_pack.pure_core.errors import PureError

from run_nodes import apply, build, capture, prompts, run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def basis(mini):
    import torch

    with torch.inference_mode():
        return build(capture(mini, prompts("miplo")), capture(mini, prompts("zorbo", "retain")), forget_energy=0.9999)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB as ComfyUI's output folder.

    Root writes through mode bits, so nothing less shows anything.
    """
    before, disk = folder_paths.get_output_directory(), tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    assert mounted.returncode == 0, (
        f"this test needs to mount a tmpfs (run the tests as root, in a container that may mount): {mounted.stderr}"
    )
    folder_paths.set_output_directory(str(disk))
    try:
        yield disk
    finally:
        folder_paths.set_output_directory(before)
        subprocess.run(["umount", str(disk)], check=True)


def saves(mini, basis):
    model, clip, vae = apply(mini[0], basis), *mini[1:]
    return {
        "checkpoint": lambda: run(SaveCheckpoint, model=model, clip=clip, vae=vae, filename_prefix="x"),
        "lora": lambda: run(SaveLoRA, model=model, filename_prefix="x", dtype="fp32"),
        "basis": lambda: run(SaveBasis, basis=basis, filename_prefix="x"),
    }


@pytest.mark.parametrize("what", ["checkpoint", "lora", "basis"])
@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk(mini, basis, small_disk, monkeypatch, what, known):
    """Known before the write from the free space, and met in the middle of it."""
    filler = b"x" * (2**20 - 2**15)
    (small_disk / "x_00001_.safetensors").write_bytes(filler)
    if not known:
        monkeypatch.setattr(saving, "check_room", lambda *_: None)
    with pytest.raises(PureError, match="make room or choose another folder"):
        saves(mini, basis)[what]()
    assert {p.name: p.read_bytes() for p in small_disk.iterdir()} == {"x_00001_.safetensors": filler}


@pytest.mark.parametrize("what", ["checkpoint", "lora", "basis"])
def test_a_read_only_disk(mini, basis, small_disk, monkeypatch, what):
    monkeypatch.setattr(saving, "check_room", lambda *_: None)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(PureError, match="could not be written"):
        saves(mini, basis)[what]()
    assert list(small_disk.iterdir()) == []


CHILD = """
import sys
sys.path[:0] = [{tools!r}, {here!r}]
import inprocess; inprocess.start()
import folder_paths, torch
folder_paths.set_output_directory({output!r})
from run_nodes import apply, build, capture, prompts, run
from pure_pack.nodes.export import SaveCheckpoint
with torch.inference_mode():
    mini = inprocess.load_checkpoint()
    edited = apply(mini[0], build(capture(mini, prompts("miplo")), capture(mini, prompts("zorbo", "retain"))))
    for _ in range(100):
        run(SaveCheckpoint, model=edited, clip=mini[1], vae=mini[2], filename_prefix="x")
"""


def test_a_kill_in_the_middle_of_a_save(tmp_path):
    code = CHILD.format(tools=str(HERE.parent.parent / "tools"), here=str(HERE), output=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    end = time.monotonic() + 120
    while not (parts := [p for p in tmp_path.glob("*.part") if p.exists() and p.name.startswith(".x_00002_")]):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["x_00001_.safetensors"]  # the whole one from before
    folder_paths.get_filename_list("checkpoints")
    assert not any(
        str(p).endswith(tuple(folder_paths.supported_pt_extensions)) for p in parts
    )  # no loader lists what is left
    from safetensors.torch import load_file

    assert len(load_file(tmp_path / "x_00001_.safetensors")) > 500
