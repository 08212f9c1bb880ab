"""A real ComfyUI inside this process, for tests and benchmarks; start() comes before any import of comfy."""

from __future__ import annotations

import asyncio
import copy
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pack
from get_comfyui import DEVICE, HOME, Host, SetupError
from mini_sd.layout import install_checkpoint
from mini_sd.narrow import TEXT_LAYERS

CLIP_LAYERS = "clip_l.transformer.text_model.encoder.layers"


def start() -> None:
    """Puts the host on the import path with its options set, as its own main.py does, and loads the pack as
    `pure_pack`.

    On the CPU unless the environment variable PURE_DEVICE is "cuda"; raises SetupError where there is no such card.
    """
    if "comfy.cli_args" in sys.modules:
        return
    host, arguments = Host.load(), sys.argv
    sys.path.insert(0, host.source)
    sys.argv = sys.argv[:1]
    from comfy.cli_args import args

    sys.argv = arguments
    args.cpu, args.base_directory = os.environ.get(DEVICE, "cpu") != "cuda", host.base
    if not args.cpu:
        import torch

        if not torch.cuda.is_available():
            raise SetupError(f"{DEVICE} is cuda, and torch {torch.__version__} finds no NVIDIA card.")
    import folder_paths  # noqa: F401
    import utils.install_util  # noqa: F401  (before nodes, as main.py has it)

    pack.load()


def checkpoint() -> Path:
    """The miniature checkpoint in the host's checkpoints folder, made if it is not there."""
    return install_checkpoint(HOME / "base")


def load_checkpoint(path: Path | None = None):
    """MODEL, CLIP and VAE of a checkpoint, by the host's loader; a fresh copy each time."""
    import comfy.sd

    return comfy.sd.load_checkpoint_guess_config(str(path or checkpoint()), output_vae=True, output_clip=True)[:3]


def quick_clip(clip):
    """The miniature's CLIP without most of its layers that pass their input on: the same numbers to the last bit in a
    quarter of the time. A copy; what is saved of it, and its weights, are the whole one's."""
    out, whole = clip.clone(), clip.cond_stage_model
    layers = whole.get_submodule(CLIP_LAYERS)
    out.cond_stage_model = replaced(
        whole, CLIP_LAYERS.split("."), layers[: TEXT_LAYERS + 1]
    )  # some MODELs read the last but one
    out.get_sd = clip.get_sd
    return out


def replaced(module, path: list[str], new):
    """A copy of a module with another one at a path; all that is not on the path is shared."""
    out = copy.copy(module)
    out._modules = {
        **module._modules,
        path[0]: replaced(module._modules[path[0]], path[1:], new) if path[1:] else new,
    }
    return out


def schemas() -> list:
    """The schemas of the pack's nodes, as the host asks for them."""
    start()
    from pure_pack.nodes.extension import PureExtension

    with ThreadPoolExecutor(1) as apart:  # where this thread has an event loop of its own, as beside a browser
        return [node.GET_SCHEMA() for node in apart.submit(asyncio.run, PureExtension().get_node_list()).result()]
