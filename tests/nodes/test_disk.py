"""Disks that fill up, that are read-only, and a process that is killed while it saves.

Nothing half-written gets a name.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import folder_paths
import pytest
from pure_pack.nodes.basis import SaveBasis
from pure_pack.nodes.export import SaveCheckpoint, SaveLoRA
from pure_pack.nodes.host import checkpoint, lora_file, paths
from pure_pack.pure_core.errors import PureError
from safetensors.torch import load_file

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


def look_away(monkeypatch):
    """Nobody asks how much room there is."""
    for module in (checkpoint, lora_file, paths):
        monkeypatch.setattr(module, "check_room", lambda *_: None)


@pytest.mark.parametrize("what", ["checkpoint", "lora", "basis"])
@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk(mini, basis, small_disk, monkeypatch, what, known):
    """Known before the write from the free space, and met in the middle of it."""
    filler = b"x" * (2**20 - 2**15)
    (small_disk / "x_00001_.safetensors").write_bytes(filler)
    if not known:
        look_away(monkeypatch)
    with pytest.raises(PureError, match="Make room or choose another"):
        saves(mini, basis)[what]()
    assert {p.name: p.read_bytes() for p in small_disk.iterdir()} == {"x_00001_.safetensors": filler}


@pytest.mark.parametrize("what", ["checkpoint", "lora", "basis"])
def test_a_read_only_disk(mini, basis, small_disk, monkeypatch, what):
    look_away(monkeypatch)
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
    for _ in range(8):  # few, so that an orphan does not fill the disk
        run(SaveCheckpoint, model=edited, clip=mini[1], vae=mini[2], filename_prefix="x")
"""


def written_parts(folder):
    """Files that are being written, with how large they are.

    The pack's own, and the safetensors library's beside it.
    """
    found = {}
    for path in folder.glob(".pure-*.part/*"):
        with contextlib.suppress(OSError):  # gone since
            found[path] = path.stat().st_size
    return found


def test_a_kill_in_the_middle_of_a_write(tmp_path, mini, basis):
    """The second of many saves is killed while its file grows; the next save by a living process clears up after it."""
    code = CHILD.format(tools=str(HERE.parent.parent / "tools"), here=str(HERE), output=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    end, whole = time.monotonic() + 300, tmp_path / "x_00001_.safetensors"
    try:
        while not (whole.exists() and any(path.name.startswith(".tmp") for path in written_parts(tmp_path))):
            # the library writes a .tmp first, and renames it
            assert child.poll() is None
            assert time.monotonic() < end
    finally:
        child.kill()
        child.wait()
    left = written_parts(tmp_path)
    assert sum(left.values()) > 2**20, "the kill came in the write"
    assert [p.name for p in tmp_path.glob("*.safetensors")] == [whole.name]  # the whole one from before
    suffixes = tuple(folder_paths.supported_pt_extensions)
    assert not any(str(path).endswith(suffixes) for path in left)  # no loader lists what is left
    assert len(load_file(whole)) > 500
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    try:
        run(SaveBasis, basis=basis, filename_prefix="y")
    finally:
        folder_paths.set_output_directory(before)
    assert written_parts(tmp_path) == {}
    assert list(tmp_path.glob(".*")) == []
