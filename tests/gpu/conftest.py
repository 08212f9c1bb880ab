"""The host in this process, on the device that the environment variable PURE_DEVICE names; on the CPU without it, so
that every run shows that these tests still work."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nodes"))  # run_nodes

import inprocess

inprocess.start()  # before anything of comfy is imported

import comfy.model_management
import pytest
import torch


@pytest.fixture(autouse=True)
def _as_the_executor_runs_nodes():
    with torch.inference_mode():
        yield
    comfy.model_management.unload_all_models()
