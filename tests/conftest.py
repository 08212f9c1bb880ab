"""Puts tools/ on the import path (never the pack's root, whose nodes/ would shadow the host's nodes.py) and loads the
pack as `pure_pack`."""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin starve shared cores
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # more threads than cores only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import get_comfyui
import host_table
import pack

pack.load()
worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
if worker != "gw0":  # where several processes run the tests, each has models and files of its own
    os.environ[get_comfyui.BASE] = str(get_comfyui.make_base(get_comfyui.HOME / f"base-{worker}"))
IN_THE_BROWSER = ("tests/server/test_ui.py", "tests/server/test_examples.py")
HOSTED = ("nodes", "server", "gpu")  # folders of tests that run in a ComfyUI


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="put the result into docs/tables/hosts.md")


def pytest_terminal_summary(terminalreporter, config):
    """Minutes by folder and in the web UI, the host's own sampling and the servers' start included, and which host."""
    kinds = ("passed", "failed", "error", "skipped", "")
    reports = [(k, r) for k in kinds for r in terminalreporter.stats.get(k, []) if hasattr(r, "duration")]
    folders: dict[str, Counter] = {}
    for kind, report in reports:
        counts = folders.setdefault(report.nodeid.split("/")[1], Counter())
        counts["seconds"] += report.duration
        counts["in the web UI"] += report.duration * report.nodeid.startswith(IN_THE_BROWSER)
        counts[kind] += 1
    for folder, counts in sorted(folders.items()):
        web = f", {counts['in the web UI'] / 60:.1f} of them in the web UI" if counts["in the web UI"] else ""
        terminalreporter.write_line(f"tests/{folder}: {counts['seconds'] / 60:.1f} minutes{web}.")
    if set(folders) & set(HOSTED):
        host = host_table.this_host()
        terminalreporter.write_line(f"They ran on {host}.")
        partly = config.option.keyword or any(".py" in argument for argument in config.args)
        if config.getoption("--record") and partly:
            terminalreporter.write_line("Nothing was recorded: --record goes with whole folders.")
        elif config.getoption("--record"):
            host_table.record(host, {folder: counts for folder, counts in folders.items() if folder in HOSTED})
