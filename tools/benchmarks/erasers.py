"""Edits of the miniature model by the pack's own nodes, in a real ComfyUI in this process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import reduce

import inprocess

inprocess.start()  # before anything of comfy is imported

import torch
from pure_pack.nodes.activations import MergeActivations
from pure_pack.nodes.apply import ApplyProjection
from pure_pack.nodes.basis import BuildBasis
from pure_pack.nodes.capture import CaptureActivations
from pure_pack.nodes.host import identity, recording, sampling
from pure_pack.nodes.host.observing import observed
from pure_pack.nodes.host.reporting import Progress
from pure_pack.nodes.host.sites import ROOT, attention_sites
from pure_pack.nodes.host.weights import effective_weight
from pure_pack.nodes.measure import MeasureLeakage
from pure_pack.nodes.ordinary import CaptureOrdinary
from pure_pack.pure_core.kinds import settings_of  # noqa: F401  (for methods.py, which must not load the pack)
from pure_pack.pure_core.moments import MomentsFitter
from pure_pack.pure_core.ordinary import TOGETHER
from pure_pack.pure_core.prompts import PHRASINGS, Prompts, anchor_prompts

from mini_sd import ordinary, studio
from mini_sd.world import ARTISTS, CHARACTERS, COLORS, EYES, MARKS, NOUNS, SHAPES, STYLES, TOPPERS, Creature

SIZE = {"width": 64, "height": 64, "batch_size": 16}
DESCRIPTIONS = 4
MINE: dict = {}  # ordinary pictures as mini_sd.ordinary has them


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
    """Lines of a box of PURE_ConceptPrompts, with the node's other inputs."""

    lines: str
    inputs: tuple = ()

    def prompts(self, role: str) -> Prompts:
        """The prompts that the node makes of them, to forget or to retain."""
        inputs = {"keep_empty_prompt": role == "retain", **dict(self.inputs)}
        return anchor_prompts(self.lines, role, **inputs)


@dataclass(frozen=True)
class Plan:
    """What is forgotten and what is retained; captions: what is not as usual about those of ordinary pictures."""

    forget: tuple[Anchors, ...]
    retain: tuple[Anchors, ...]
    captions: tuple[tuple[str, float], ...] = ()


EMPTY = Anchors("")
BARE = (("keep_empty_prompt", False),)


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

    Retain the other artists, the characters, plain things, the empty prompt, and ordinary pictures in no style: they
    never show what is to be forgotten.
    """
    artistic = (("kind", "artistic style"),)
    described = tuple(Anchors(line, (("templates", IN_STYLE),)) for line in STYLES[style][:descriptions])
    forms = (("templates", "\n".join(PHRASINGS["artistic style"])),)  # to keep, that kind takes whole prompts
    artists = tuple(Anchors(ARTISTS[s], BARE + forms) for s in ARTISTS if s != style)
    return Plan(
        (Anchors(ARTISTS[style], artistic), *described),
        (EMPTY, *artists, *(Anchors(c, BARE) for c in (*CHARACTERS, *(PLAIN if plain else ())))),
        (("styled", 0.0),),
    )


def phrasings(anchors: tuple[Anchors, ...], role: str) -> list[str]:
    """The prompts of a side of a plan."""
    return [text for a in anchors for text in a.prompts(role).texts]


def position_moments(model, clip, anchors: Anchors, role: str, trajectory: sampling.Trajectory) -> dict:
    """Moments of a capture in which every position's activation is a row: an ablation, which no node offers."""
    sites = recording.recordable_sites(model)
    fitters = {site.name: MomentsFitter(site.width) for site in sites}
    texts = anchors.prompts(role).texts
    conditioning, progress = sampling.encode_all(clip, texts), Progress(model, trajectory.evaluations(len(texts)))
    jobs = sorted(sampling.jobs_of([(t, None) for t in texts], 1), key=lambda j: conditioning[j.text][0].shape[1])
    noise = sampling.start_noise(model, trajectory.seed, 1, trajectory.width, trajectory.height)

    def see(site, h):
        fitters[site.name].add(h.flatten(0, 1).float())

    def after_step(step, denoised, x, total):
        progress.step(denoised, len(x))

    with observed(model, sites, see) as watched:
        for batch in sampling.batched(jobs, conditioning, trajectory.batch_size):
            sampling.sample(watched, conditioning, noise, batch, trajectory, after_step)
    return {name: fitter.result() for name, fitter in fitters.items()}


def sample_alone(model, clip, texts: tuple[str, ...], trajectory: sampling.Trajectory) -> None:
    """The host's sampler on the batches of a capture of these prompts, without the capture."""
    conditioning = sampling.encode_all(clip, texts)
    latents = sampling.start_noise(model, trajectory.seed, trajectory.seeds, trajectory.width, trajectory.height)
    jobs = sampling.jobs_of([(text, None) for text in texts], trajectory.seeds)
    for batch in sampling.batched(jobs, conditioning, trajectory.batch_size):
        sampling.sample(model, conditioning, latents, batch, trajectory, lambda *_: None)


def without_neutral(ordinary):
    """A capture of ordinary pictures that names no neutral ones: what is erased then goes to the mean of what is kept,
    these among it."""
    sums = {name: rows.sum(0, keepdim=True) for name, rows in ordinary.sums.items()}
    anchors = replace(ordinary.anchors, concepts=(TOGETHER,))
    return replace(ordinary, sums=sums, rows=(sum(ordinary.rows),), anchors=anchors)


class Eraser:
    """Makes edits of one MODEL by the nodes; what several plans share is captured once and merged."""

    def __init__(self, checkpoint=None, model=None, **capture):
        loaded = checkpoint or inprocess.load_checkpoint()
        self.model, self.clip = model or loaded[0], inprocess.quick_clip(loaded[1])
        self.settings = {**SIZE, **capture}
        self._captured: dict[tuple, object] = {}

    def capture(self, anchors: Anchors, role: str):
        key = (anchors, role)
        if key not in self._captured:
            self._captured[key] = run(
                CaptureActivations,
                model=self.model,
                clip=self.clip,
                prompts=anchors.prompts(role),
                experimental=True,
                **self.settings,
            )[0]
        return self._captured[key]

    def capture_positions(self, anchors: Anchors, role: str):
        """The same with every position's activation as a row of its own."""
        key = (anchors, role, "positions")
        if key not in self._captured:
            pooled = self.capture(anchors, role)
            trajectory = sampling.Trajectory(**asdict(pooled.settings), batch_size=self.settings["batch_size"])
            moments = position_moments(self.model, self.clip, anchors, role, trajectory)
            self._captured[key] = replace(pooled, moments=moments)
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

    def ordinary(self, **captions):
        """The capture of ordinary pictures of this world; captions: as mini_sd.ordinary.captions takes them."""
        key = ("ordinary", *sorted(captions.items()))
        if key not in self._captured:
            lines = "\n".join(ordinary.captions(**captions))
            size = {"size": self.settings["width"], "batch_size": self.settings["batch_size"]}
            parts = {"model": self.model, "clip": self.clip, "captions": lines, "keep_file": False}
            self._captured[key] = run(CaptureOrdinary, **parts, **size)[0]
        return self._captured[key]

    def basis(
        self,
        plan: Plan,
        positions: bool = False,
        ordinary: dict | None = MINE,
        neutral: bool = True,
        instead: str = "",
        **build,
    ):
        """The basis of a plan, with the node's defaults where nothing is given.

        ordinary: captions, where they are not the plan's; None for none. neutral: whether the concept is sent to what
        the neutral prompts render, or else to the mean of what is kept. instead: what is drawn instead, if anything.
        """
        pictures = None if ordinary is None else self.ordinary(**{**dict(plan.captions), **ordinary})
        return run(
            BuildBasis,
            forget=self.merged(plan.forget, "forget", positions),
            keep=self.merged(plan.retain, "retain", positions),
            ordinary=pictures if neutral or pictures is None else without_neutral(pictures),
            replacement=self.capture(Anchors(instead), "forget") if instead else None,
            **build,
        )[0]

    def erase(self, plan: Plan, apply: dict | None = None, **build):
        """The MODEL after the plan, with the nodes' defaults where nothing is given; build: as `basis` takes it."""
        basis = self.basis(plan, **build)
        return run(ApplyProjection, model=self.model, basis=basis, **(apply or {}))[0]

    def measure(self, model, target: str, described: int = 3, retained: int = 4) -> dict:
        """What PURE_MeasureLeakage says of an edit of a character, asked by its name and by descriptions of the choose
        set, beside so many others' names."""

        def probes(lines, role):
            return anchor_prompts("\n".join(lines), role, templates="{}\na picture of {}")

        descriptions = [e["prompt"] for e in studio.prompts()["choose"]["name_free"][target][:described]]
        return json.loads(
            run(
                MeasureLeakage,
                original=self.model,
                edited=model,
                clip=self.clip,
                concept_probes=probes([target, *descriptions], "forget"),
                keep_probes=probes([c for c in CHARACTERS if c != target][:retained], "retain"),
                steps=5,
                seed=77,
                width=64,
                height=64,
            )[1]
        )


def narrow(model) -> dict[str, torch.Tensor]:
    """The narrow U-Net's weights that an edit can change, from a MODEL's effective ones."""
    keys = identity.site_keys(attention_sites(model))
    return {key.removeprefix(ROOT): studio.leading(effective_weight(model, key)) for key in keys}
