"""Loads this pack under one fixed alias, for tests and benchmarks: `pack.load()` and then `from pure_pack.pure_core import ...`.

The pack's root never goes on sys.path: its nodes/ would shadow the host's nodes.py.
"""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PROJECT = Path(__file__).resolve().parent.parent
ALIAS = "pure_pack"


def load() -> ModuleType:
    """The pack as the module `pure_pack`, the same one each time."""
    if ALIAS not in sys.modules:
        spec = importlib.util.spec_from_file_location(ALIAS, PROJECT / "__init__.py", submodule_search_locations=[str(PROJECT)])
        module = importlib.util.module_from_spec(spec)
        sys.modules[ALIAS] = module
        spec.loader.exec_module(module)
    return sys.modules[ALIAS]
