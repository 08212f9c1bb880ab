"""Loads this pack under one fixed alias, for tests and benchmarks: `pack.load()` and then `from pure_pack.pure_core
import ...`.

The pack's root never goes on sys.path: its nodes/ would shadow the host's nodes.py.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

PROJECT = Path(__file__).resolve().parent.parent
ALIAS = "pure_pack"


def load() -> ModuleType:
    """The pack as the module `pure_pack`, the same one each time."""
    if ALIAS not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            ALIAS, PROJECT / "__init__.py", submodule_search_locations=[str(PROJECT)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[ALIAS] = module
        spec.loader.exec_module(module)
    return sys.modules[ALIAS]


def archived() -> list[str]:
    """What would be published: files that git knows and .comfyignore does not name.

    a test shows that comfy-cli packs the same.
    """
    known = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    ignored = [
        line.removeprefix("/")
        for line in (PROJECT / ".comfyignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("/")
    ]
    return [f for f in known if not any(f == i or (i.endswith("/") and f.startswith(i)) for i in ignored)]


def unpack(folder: Path) -> None:
    """Puts the archive's files into a folder, as an installer does."""
    for file in archived():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / file, folder / file)
