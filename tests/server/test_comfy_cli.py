"""comfy-cli, with which a release is made: it finds no fault and packs what is listed."""

import os
import subprocess
import sys
import zipfile

from get_comfyui import PROJECT, get_comfy_cli
from pack import archived


def git(*command):
    return subprocess.run(["git", *command], cwd=PROJECT, capture_output=True, text=True, check=True).stdout


def comfy_cli(folder, *command):
    """Runs comfy-cli in a folder, with a home of its own and without its reports to its makers."""
    environment = {**os.environ, "HOME": str(folder / "home"), "DO_NOT_TRACK": "1", "PYTHONPATH": str(get_comfy_cli())}
    done = subprocess.run(
        [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", *command],
        cwd=folder / "clone",
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_comfy_cli_finds_no_fault_and_packs_what_is_listed(tmp_path):
    """In a clone of what is committed, as a release is made."""
    git("clone", "--quiet", str(PROJECT), str(tmp_path / "clone"))
    status, words = comfy_cli(tmp_path, "validate")
    assert status == 0
    assert "All validation checks passed" in words
    status, words = comfy_cli(tmp_path, "pack")
    assert status == 0, words
    with zipfile.ZipFile(tmp_path / "clone" / "node.zip") as archive:
        packed = set(archive.namelist())
    uncommitted = set(git("diff", "--no-renames", "--name-only", "HEAD").split())
    assert packed ^ set(archived()) <= uncommitted
    (tmp_path / "clone" / "nodes" / "prompts.py").write_text("exec('1')\n", encoding="utf-8")  # control
    assert "S102" in comfy_cli(tmp_path, "validate")[1]
