"""Small API graphs over the miniature checkpoint."""

import copy

import numpy as np
from PIL import Image

SMALL = {
    "loader": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "mini_sd.safetensors"}},
    "lists": {
        "class_type": "PURE_ConceptPrompts",
        "inputs": {
            "forget": "miplo",
            "keep": "zorbo\nbramby",
            "kind": "object or character",
            "keep_empty_prompt": True,
            "templates": "{}",
        },
    },
    "capture_forget": {
        "class_type": "PURE_CaptureActivations",
        "inputs": {
            "model": ["loader", 0],
            "clip": ["loader", 1],
            "prompts": ["lists", 0],
            "steps": 4,
            "recorded_steps": 2,
            "seeds": 1,
            "seed": 0,
            "cfg": 1.0,
            "width": 64,
            "height": 64,
            "sampler_name": "euler",
            "scheduler": "normal",
            "batch_size": 4,
            "experimental": False,
        },
    },
    "build": {
        "class_type": "PURE_BuildBasis",
        "inputs": {
            "forget": ["capture_forget", 0],
            "keep": ["capture_retain", 0],
            "rule": "contrast",
            "forget_energy": 0.9999,
            "keep_energy": 0.6,
            "keep_weight": 3.0,
            "centering": "none",
            "structure": "whole layer",
            "max_rank": 0,
            "ordinary_share": 0.5,
        },
    },
    "apply": {
        "class_type": "PURE_ApplyProjection",
        "inputs": {
            "model": ["loader", 0],
            "basis": ["build", 0],
            "strength": 1.0,
            "weights": "keys and values",
            "iterations": 1,
            "layers": "all",
        },
    },
    "empty": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": ""}},
    "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": "miplo at night"}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "sampler": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["apply", 0],
            "positive": ["text", 0],
            "negative": ["empty", 0],
            "latent_image": ["latent", 0],
            "seed": 3,
            "steps": 4,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["loader", 2]}},
    "picture": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
}
ORDINARY = {
    "class_type": "PURE_CaptureOrdinary",
    "inputs": {
        "model": ["loader", 0],
        "clip": ["loader", 1],
        "language": "pictures",
        "captions": "a red circle\na blue star",
        "steps": 5,
        "size": 64,
        "batch_size": 4,
        "keep_file": True,
    },
}
SMALL["capture_retain"] = {
    "class_type": "PURE_CaptureActivations",
    "inputs": {**SMALL["capture_forget"]["inputs"], "prompts": ["lists", 1]},
}


def graph(**changes):
    """The small graph with inputs changed: node={"input": value}; a node given as None is left out."""
    out = copy.deepcopy(SMALL)
    for node, inputs in changes.items():
        if inputs is None:
            del out[node]
        elif "class_type" in inputs:
            out[node] = inputs
        else:
            out[node]["inputs"].update(inputs)
            out[node]["inputs"] = {k: v for k, v in out[node]["inputs"].items() if v is not None}
    return out


def picture(server, outputs, node="picture"):
    """The picture that a node of a run gave, int16."""
    return np.asarray(Image.open(server.file(outputs[node]["images"][0])), dtype=np.int16)
