"""Which tests passed on which ComfyUI, and when: docs/tables/hosts.json, and the table that is made of it.

`nox -s tests -- --record` writes both; `python tools/host_table.py` writes the table alone.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import date
from importlib import metadata

from get_comfyui import DEVICE, PROJECT, Host

TABLES = PROJECT / "docs" / "tables"
HEAD = """# Tests by ComfyUI

Written by `nox -s tests -- --comfyui PATH --record`; without `--comfyui`, in the pinned ComfyUI that CI uses. Tests in
the host's process (nodes, gpu) load MODELs as hosts without dynamic VRAM do.

"""


def this_host() -> str:
    """The host and what it runs on, in words."""
    import torch

    device = torch.cuda.get_device_name() if os.environ.get(DEVICE) == "cuda" else "CPU"
    versions = (f"Python {platform.python_version()}", f"torch {torch.__version__.partition('+')[0]}")
    try:
        frontend = f"frontend {metadata.version('comfyui-frontend-package')}"
    except metadata.PackageNotFoundError:
        frontend = "no frontend"
    return f"ComfyUI {Host.load().version}, {frontend}, {', '.join(versions)}, {device}"


def outcome(counts: Mapping[str, float]) -> str:
    """A folder's counts in words, with the day: "200 passed, 1 failed (2026-11-27)"."""
    failed = counts["failed"] + counts["error"]
    parts = {"passed": counts["passed"], "failed": failed, "skipped": counts["skipped"]}
    told = ", ".join(f"{n:.0f} {kind}" for kind, n in parts.items() if n or kind == "passed")
    return f"{told} ({date.today().isoformat()})"


def record(host: str, folders: Mapping[str, Mapping[str, float]]) -> None:
    """Puts a run's counts by folder into the file, over those of an earlier run on the same host, and writes the
    table."""
    path = TABLES / "hosts.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known.setdefault(host, {}).update({folder: outcome(counts) for folder, counts in folders.items()})
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_table(known)


def write_table(known: Mapping[str, Mapping[str, str]]) -> None:
    """Writes docs/tables/hosts.md."""
    folders = sorted({folder for row in known.values() for folder in row})
    lines = [f"| host | {' | '.join(f'tests/{folder}' for folder in folders)} |", "|---" * (len(folders) + 1) + "|"]
    lines += [f"| {host} | {' | '.join(row.get(f, '-') for f in folders)} |" for host, row in sorted(known.items())]
    (TABLES / "hosts.md").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table(json.loads((TABLES / "hosts.json").read_text(encoding="utf-8")))
