"""Edits of the miniature model by the pack's own nodes, in a real ComfyUI in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import reduce

import inprocess

inprocess.start()  # before anything of comfy is imported

import torch
from pure_pack.nodes.apply import ApplyProjection
from pure_pack.nodes.basis import BuildBasis
from pure_pack.nodes.capture import CaptureActivations, MergeActivations
from pure_pack.nodes.host import recording, sampling
from pure_pack.nodes.host.layers import cross_attention_layers
from pure_pack.nodes.host.patches import effective_weight
from pure_pack.nodes.host.reporting import Progress
from pure_pack.nodes.measure import MeasureLeakage
from pure_pack.nodes.prompts import ConceptPrompts
from pure_pack.pure_core.activations import Activations

from mini_sd import studio
from mini_sd.world import ARTISTS, CHARACTERS, COLORS, EYES, MARKS, NOUNS, SHAPES, STYLES, TOPPERS, Creature

SIZE = {"width": 64, "height": 64, "batch_size": 16}
DESCRIPTIONS = 4


def call(node, **inputs):
    """What a node returns, called as the executor does; widgets that are not given have their defaults."""
    defaults = {i.id: i.default for i in node.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    return node.PREPARE_CLASS_CLONE({}).execute(**{**defaults, **inputs})


def run(node, **inputs):
    """The outputs of a node."""
    return call(node, **inputs).result


def describe(creature: Creature, wordings: int = DESCRIPTIONS) -> list[str]:
    """What a user would write of a character beside its name, in up to four wordings; none of them is a test prompt."""

    def pick(words, i):
        return words[i % len(words)] if words else ""

    out = []
    for i, (color, shape, topper, mark, eyes, noun) in enumerate(
        ((0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1), (1, 0, 1, 0, 0, 2), (0, 1, 0, 1, 1, 0))[:wordings]
    ):
        words = [pick(COLORS[creature.color][1], color), pick(SHAPES[creature.shape][1], shape)]
        parts = [
            p
            for p in (
                pick(TOPPERS[creature.topper], topper),
                pick(MARKS[creature.mark], mark),
                pick(EYES[creature.eyes], eyes),
            )
            if p
        ]
        out.append(
            f"{' '.join(words[:: -1 if i % 2 else 1])} {NOUNS[noun]} with {', '.join(parts[:-1])} and {parts[-1]}"
        )
    return out


@dataclass(frozen=True)
class Anchors:
    """Lines for PURE_ConceptPrompts, with the node's other inputs."""

    lines: str
    inputs: tuple = ()


@dataclass(frozen=True)
class Plan:
    """What is forgotten and what is retained."""

    forget: tuple[Anchors, ...]
    retain: tuple[Anchors, ...]


EMPTY = Anchors("")
BARE = (("include_empty_prompt", False),)


def character_plan(
    *names: str,
    descriptions: int = DESCRIPTIONS,
    neighbours: int = 7,
    described: int = 0,
    empty: bool = True,
    templates: str = "",
) -> Plan:
    """Forget names and descriptions of characters.

    Retain the names (and some descriptions) of the first others, and the empty prompt.
    """
    form = (("templates", templates),) if templates else ()
    others = [n for n in CHARACTERS if n not in names][:neighbours]
    forget = [Anchors(line, form) for n in names for line in (n, *describe(CHARACTERS[n], descriptions))]
    retain = [Anchors(line, BARE + form) for o in others for line in (o, *describe(CHARACTERS[o], described))]
    return Plan(tuple(forget), (*([EMPTY] if empty or not retain else []), *retain))


IN_STYLE = "\n".join(
    ("a picture {}", "an image {}", "a drawing {}", "a red circle {}", "a blue star {}", "a green square {}")
)


PLAIN = ("a red circle", "a blue star", "a green square", "a purple heart", "an orange triangle", "a yellow flower")


def style_plan(style: str, descriptions: int = 2, plain: bool = True) -> Plan:
    """Forget an artist and descriptions of the style.

    Retain the other artists, the characters, plain things and the empty prompt.
    """
    artistic = (("preset", "artistic style"),)
    described = tuple(Anchors(line, (("templates", IN_STYLE),)) for line in STYLES[style][:descriptions])
    artists = tuple(Anchors(ARTISTS[s], BARE + artistic) for s in ARTISTS if s != style)
    return Plan(
        (Anchors(ARTISTS[style], artistic), *described),
        (EMPTY, *artists, *(Anchors(c, BARE) for c in (*CHARACTERS, *(PLAIN if plain else ())))),
    )


def phrasings(anchors: tuple[Anchors, ...], role: str) -> list[str]:
    """The prompts that PURE_ConceptPrompts makes of a side of a plan."""
    return [
        prompt
        for a in anchors
        for _, prompt in run(ConceptPrompts, concepts=a.lines, role=role, **dict(a.inputs))[0].pairs
    ]


class PerPosition(recording.Recorder):
    """Keeps every position's activation as a row."""

    @staticmethod
    def rows_of(h):
        return h.flatten(0, 1).float()

    def collect(self):  # layers have different numbers of positions
        for name, rows in self._pooled.items():
            self.fitters[name].add(rows)
        self._pooled = {}

    def results(self, expected):
        return {name: fitter.result() for name, fitter in self.fitters.items()}


class Eraser:
    """Makes edits of one MODEL by the nodes; what several plans share is captured once and merged."""

    def __init__(self, checkpoint=None, model=None, **capture):
        loaded = checkpoint or inprocess.load_checkpoint()
        self.model, self.clip = model or loaded[0], loaded[1]
        self.settings = {**SIZE, **capture}
        self._captured: dict[tuple, object] = {}

    def capture(self, anchors: Anchors, role: str):
        key = (anchors, role)
        if key not in self._captured:
            prompts = run(ConceptPrompts, concepts=anchors.lines, role=role, **dict(anchors.inputs))[0]
            self._captured[key] = run(
                CaptureActivations, model=self.model, clip=self.clip, prompts=prompts, **self.settings
            )[0]
        return self._captured[key]

    def capture_positions(self, anchors: Anchors, role: str):
        """The same with every position's activation as a row of its own: an ablation, which no node offers."""
        key = (anchors, role, "positions")
        if key not in self._captured:
            pooled = self.capture(anchors, role)
            trajectory = sampling.Trajectory(
                **{k: pooled.provenance[k] for k in sampling.Trajectory.__dataclass_fields__ if k != "batch_size"},
                batch_size=self.settings["batch_size"],
            )
            prompts = run(ConceptPrompts, concepts=anchors.lines, role=role, **dict(anchors.inputs))[0]
            layers = recording.recordable_layers(self.model)
            texts = sampling.texts_of(prompts)
            jobs, progress = (
                sampling.jobs_of(texts, trajectory.latents),
                Progress(self.model, trajectory.evaluations(len(texts))),
            )
            moments = recording.record(
                self.model, sampling.encode_all(self.clip, texts), jobs, trajectory, PerPosition(layers), progress
            )
            self._captured[key] = Activations(moments, pooled.heads, pooled.provenance)
        return self._captured[key]

    def merged(self, parts: tuple[Anchors, ...], role: str, positions: bool = False):
        """All captures of a role as one."""
        capture, key = self.capture_positions if positions else self.capture, (parts, role, positions)
        if key not in self._captured:
            self._captured[key] = reduce(
                lambda a, b: run(MergeActivations, activations_a=a, activations_b=b)[0],
                (capture(p, role) for p in parts),
            )
        return self._captured[key]

    def erase(self, plan: Plan, apply: dict | None = None, positions: bool = False, **build):
        """The MODEL after the plan, with the nodes' defaults where nothing is given."""
        basis = run(
            BuildBasis,
            forget=self.merged(plan.forget, "forget", positions),
            retain=self.merged(plan.retain, "retain", positions),
            **build,
        )[0]
        return run(ApplyProjection, model=self.model, basis=basis, **(apply or {}))[0]

    def measure(self, model, target: str) -> dict:
        """What PURE_MeasureLeakage says of an edit of a character, asked by its name and by descriptions of the choose
        set."""

        def probes(lines, role):
            return run(
                ConceptPrompts,
                concepts="\n".join(lines),
                role=role,
                templates="{}\na picture of {}",
                include_empty_prompt=False,
            )[0]

        described = [e["prompt"] for e in studio.prompts()["choose"]["name_free"][target][:3]]
        return json.loads(
            run(
                MeasureLeakage,
                original=self.model,
                edited=model,
                clip=self.clip,
                concept_probes=probes([target, *described], "forget"),
                retain_probes=probes([c for c in CHARACTERS if c != target][:4], "retain"),
                steps=5,
                seed=77,
                width=64,
                height=64,
            )[1]
        )


def narrow(model) -> dict[str, torch.Tensor]:
    """The narrow U-Net's weights that an edit can change, from a MODEL's effective ones."""
    parts, own = {"keys": "to_k", "values": "to_v", "output": "to_out.0"}, model.get_key_patches("diffusion_model.")
    return {
        f"{layer.name}.{part}.weight": studio.leading(effective_weight(model, layer.key(p), None, own))
        for layer in cross_attention_layers(model)
        for p, part in parts.items()
    }
