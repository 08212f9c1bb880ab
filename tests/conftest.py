"""Puts tools/ on the import path (never the pack's root, whose nodes/ would shadow the host's nodes.py) and loads the
pack as `pure_pack`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin starve shared cores
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import pytest

import pack

pack.load()

ROOT = Path(__file__).parent
IN_THE_BROWSER = ("tests/server/test_ui.py", "tests/server/test_examples.py")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items):
    """Where several processes run them: the tests of the server stay together, with one server and one base folder of
    models and files, and those of each other file, with what it shares."""
    for item in items:
        folder, *rest = item.path.relative_to(ROOT).parts
        item.add_marker(pytest.mark.xdist_group("server" if folder == "server" else "/".join((folder, *rest))))


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
