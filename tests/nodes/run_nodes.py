"""Calls the pack's nodes as the executor does, with every input named and defaults from their schemas."""
from pure_pack.nodes.apply import ApplyProjection
from pure_pack.nodes.basis import BuildBasis
from pure_pack.nodes.capture import CaptureActivations
from pure_pack.nodes.prompts import ConceptPrompts

from benchmarks.efficacy import run


def prompts(concepts, role="forget", **inputs):
    return run(ConceptPrompts, concepts=concepts, role=role, **inputs)[0]


SMALL = {"steps": 4, "recorded_steps": 2, "latents": 1, "width": 64, "height": 64, "batch_size": 8}


def capture(checkpoint, prompts, **inputs):
    model, clip = checkpoint[:2]
    return run(CaptureActivations, model=model, clip=clip, prompts=prompts, **{**SMALL, **inputs})[0]


def build(forget, retain=None, **inputs):
    return run(BuildBasis, forget=forget, retain=retain, **inputs)[0]


def apply(model, basis, **inputs):
    return run(ApplyProjection, model=model, basis=basis, **inputs)[0]
