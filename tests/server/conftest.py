"""One real server for all tests of this folder, with the miniature checkpoint and models that cannot be edited."""

import shutil
from pathlib import Path

import pytest

from browser import Browser, chromium
from comfyui_server import Server
from get_comfyui import PROJECT, Host, get_frontend
from graphs import graph
from mini_sd.layout import install_checkpoint, install_wan


@pytest.fixture(scope="session")
def base():
    folder = Path(Host.load().base)
    install_checkpoint(folder)
    install_wan(folder)
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


@pytest.fixture(scope="module")
def done(server):
    """What the small graph gives."""
    return server.run(graph())


@pytest.fixture(scope="session")
def running_chromium():
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def ui(running_chromium, server):
    """The web UI of that server; screenshots go to test_output/, which is not committed."""
    return Browser(running_chromium, server, shots=PROJECT / "test_output")


@pytest.fixture(scope="session")
def newer_server(base, tmp_path_factory):
    """The same host with a newer frontend, and temporary files of its own: a server clears them when it starts."""
    with Server(
        arguments=("--front-end-root", str(get_frontend()), "--temp-directory", str(tmp_path_factory.mktemp("newer")))
    ) as running:
        yield running


@pytest.fixture(scope="session")
def newer_ui(running_chromium, newer_server):
    return Browser(running_chromium, newer_server, shots=PROJECT / "test_output" / "newer")
