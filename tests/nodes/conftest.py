"""The real host in this process, the miniature checkpoint in it, and MODELs, captures and bases made by the nodes."""

import inprocess

inprocess.start()  # before anything of comfy is imported

import pytest
import torch

from random_models import load_random_sd1


@pytest.fixture(autouse=True, scope="module")
def _as_the_executor_runs_nodes():
    """Fixtures of modules as well: what is loaded here is of one kind."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def mini():
    """MODEL, CLIP and VAE of the miniature checkpoint; shared, as clones in a graph share theirs."""
    model, clip, vae = inprocess.load_checkpoint()
    return model, inprocess.quick_clip(clip), vae


@pytest.fixture(scope="session")
def wide():
    """A random SD 1 MODEL of widths 320, 640 and 1280 with all heads live, in float32."""
    return load_random_sd1()
