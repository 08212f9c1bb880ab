"""Puts tools/ on the import path (never the pack's root, whose nodes/ would shadow the host's nodes.py) and loads the pack as `pure_pack`."""
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin starve shared cores
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import pack

pack.load()
