"""The real host in this process, the miniature checkpoint in it, and fresh MODELs from it."""
import asyncio
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import inprocess  # noqa: E402  (the host has to be set up before anything of comfy is imported)

inprocess.start()
