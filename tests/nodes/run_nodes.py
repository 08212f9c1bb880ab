"""Calls the pack's nodes as the executor does, with every input named and defaults from their schemas.

And what tests do to a MODEL.
"""

import contextlib

import comfy.weight_adapter
import folder_paths
import torch
from pure_pack.nodes.apply import ApplyProjection
from pure_pack.nodes.basis import BuildBasis
from pure_pack.nodes.capture import CaptureActivations
from pure_pack.nodes.host import paths
from pure_pack.nodes.host.sites import attention_sites
from pure_pack.nodes.host.weights import base_weight
from pure_pack.nodes.prompts import ConceptPrompts

from benchmarks.erasers import call, run
from inprocess import CLIP_LAYERS


def prompts(concepts, role="forget", **inputs):
    """What PURE_ConceptPrompts gives of one of its boxes; the other one holds something else."""
    boxes = (
        {"forget": concepts, "keep": ""}
        if role == "forget"
        else {"forget": "what is in the other box", "keep": concepts}
    )
    return run(ConceptPrompts, **boxes, **inputs)[0 if role == "forget" else 1]


SMALL = {"steps": 4, "recorded_steps": 2, "seeds": 1, "width": 64, "height": 64, "batch_size": 8}


def capture(checkpoint, prompts, **inputs):
    model, clip = checkpoint[:2]
    inputs = {**SMALL, "experimental": True, **inputs}
    return run(CaptureActivations, model=model, clip=clip, prompts=prompts, **inputs)[0]


def build(forget, keep=None, **inputs):
    return run(BuildBasis, forget=forget, keep=keep, **inputs)[0]


def apply(model, basis, **inputs):
    """Keys and values, the larger edit, unless the test says otherwise."""
    return run(ApplyProjection, model=model, basis=basis, **{"weights": "keys and values", **inputs})[0]


def report(node, **inputs):
    """What a node shows on itself."""
    return call(node, **inputs).ui["text"][0]


def with_lora(model, seed=3):
    """A clone of MODEL with a rank-4 LoRA on every weight of its attention to text, by the host's own adapter class."""
    generator, patches = torch.Generator().manual_seed(seed), {}
    sites = attention_sites(model)
    for key in dict.fromkeys(site.key(p) for site in sites for p in ("keys", "values", "output") if p in site.weights):
        shape = base_weight(model, key).shape
        up, down = (
            torch.randn(shape[0], 4, generator=generator) * 0.05,
            torch.randn(4, shape[1], generator=generator) * 0.05,
        )
        patches[key] = comfy.weight_adapter.LoRAAdapter(set(), (up, down, 4.0, None, None, None))
    clone = model.clone()
    assert len(clone.add_patches(patches, 1.0)) == len(patches)
    return clone


def whole_clip(clip):
    """The miniature's CLIP with all twelve layers, of one without those that do nothing."""
    out = clip.clone()
    out.cond_stage_model = clip.patcher.model
    assert len(out.cond_stage_model.get_submodule(CLIP_LAYERS)) == 12
    return out


def sample(model, clip, text="miplo at night", seed=5, steps=3):
    import nodes as host_nodes  # the host's, not ours

    def encode(t):
        return clip.encode_from_tokens_scheduled(clip.tokenize(t))

    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return host_nodes.common_ksampler(model, seed, steps, 4.0, "euler", "normal", encode(text), encode(""), latent)[0][
        "samples"
    ]


@contextlib.contextmanager
def no_room_for(model):
    """The host finds room for almost nothing of a MODEL as long as the block: what stays behind is patched as it is
    used. Gives a list that gets the number of such weights at every loading."""
    kind, counted = type(model), []
    load = kind.load

    def starved(self, device_to=None, lowvram_model_memory=0, **kwargs):
        result = load(self, device_to, lowvram_model_memory=1, **{**kwargs, "full_load": False})
        counted.append(self.model.lowvram_patch_counter)
        return result

    kind.load = starved
    try:
        yield counted
    finally:
        kind.load = load


@contextlib.contextmanager
def output_in(folder):
    """The host's output folder, and the pack's own in it, are there as long as the block."""
    before, known = folder_paths.get_output_directory(), dict(folder_paths.folder_names_and_paths)
    folder_paths.set_output_directory(str(folder))
    paths.register_folder()
    try:
        yield folder
    finally:
        folder_paths.set_output_directory(before)
        folder_paths.folder_names_and_paths.clear()
        folder_paths.folder_names_and_paths.update(known)
