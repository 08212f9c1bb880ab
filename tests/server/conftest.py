"""One real server for all tests of this folder, with the miniature checkpoint and a few models that cannot be edited."""
import shutil
from pathlib import Path

import pytest

from comfyui_server import Server
from get_comfyui import Host
from mini_sd.layout import build_checkpoint


@pytest.fixture(scope="session")
def base():
    folder = Path(Host.load().base)
    build_checkpoint(folder / "models" / "checkpoints" / "mini_sd.safetensors")
    return folder


@pytest.fixture(scope="session")
def server(base):
    extra = base / "custom_nodes" / "pure_host_nodes_for_tests.py"
    shutil.copy(Path(__file__).parent / "host_nodes.py", extra)
    try:
        with Server() as running:
            yield running
    finally:
        extra.unlink()
