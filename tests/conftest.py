"""Puts tools/ on the import path (never the pack's root, whose nodes/ would shadow the host's nodes.py) and loads the
pack as `pure_pack`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin starve shared cores
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import get_comfyui
import pack

pack.load()
worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
if worker != "gw0":  # where several processes run the tests, each has models and files of its own
    os.environ[get_comfyui.BASE] = str(get_comfyui.make_base(get_comfyui.HOME / f"base-{worker}"))
IN_THE_BROWSER = ("tests/server/test_ui.py", "tests/server/test_examples.py")


def pytest_terminal_summary(terminalreporter):
    """How long the tests in the web UI took, the host's own sampling and the servers' start included."""
    reports = [
        r
        for kind in ("passed", "failed", "error", "")
        for r in terminalreporter.stats.get(kind, [])
        if getattr(r, "nodeid", "").startswith(IN_THE_BROWSER)
    ]
    if reports:
        terminalreporter.write_line(f"Tests in the web UI: {sum(r.duration for r in reports) / 60:.1f} minutes.")
