"""Every eraser as a function of a target, and the settings that were tried for each."""

from __future__ import annotations

import torch

from . import peers
from mini_sd import ordinary, studio
from mini_sd.world import CHARACTERS

DESCRIPTIONS = 4
# What was tried for each eraser on the choose set, about as many settings each; the first is its published (PURE: the
# nodes') default.
ALONE = {"ordinary": None, "keep_weight": 3.0}  # neighbours alone are kept
FORMER = {"neutral": False, "keep_weight": 0.2}  # the concept is sent to the mean of what is kept
PURE_TRIED = {  # label: (plan, build, apply)
    "defaults": ({}, {}, {}),
    "keys and values": ({}, {}, {"weights": "keys and values"}),
    "keep_weight .5": ({}, {"keep_weight": 0.5}, {}),
    "keep_weight 4": ({}, {"keep_weight": 4.0}, {}),
    "sent to the mean of keep, weight .2": ({}, FORMER, {}),
    "name alone": ({"descriptions": 0}, {}, {}),
}
# the paper's rule: energies forget / retain, iterations; with one description beside the name, and with all
PAPER_TRIED = {
    f"{f}/{r}, {n} times, {d} descriptions": (
        {"descriptions": d},
        {
            "rule": "energy",
            "centering": "none",
            "structure": "whole layer",
            "ordinary": None,
            "forget_energy": f,
            "keep_energy": r,
        },
        {"weights": "keys and values", "iterations": n},
    )
    for d, f, r, n in (
        (1, 0.95, 0.95, 1),
        (1, 0.9999, 0.5, 1),
        (1, 0.9999, 0.7, 1),
        (1, 0.9999, 0.9, 4),
        (DESCRIPTIONS, 0.9999, 0.7, 1),
        (DESCRIPTIONS, 0.9999, 0.9, 4),
    )
}
PAPER = "0.9999/0.5, 1 times, 1 descriptions"
PURE_STYLES_TRIED = {  # for artists
    "defaults": ({}, {}, {}),
    "values, weight 2": ({}, {"keep_weight": 2.0}, {"weights": "values"}),
    "weight 3": ({}, {"keep_weight": 3.0}, {}),
    "weight 20": ({}, {"keep_weight": 20.0}, {}),
    "sent to the mean of keep": ({}, {"neutral": False}, {}),
    "no plain things retained": ({"plain": False}, {}, {}),
}
TEXT_TRIED = {
    f"{f}/{r}" + (", descriptions" if d else ""): (d, f, r)
    for d, f, r in (
        (0, 0.99, 0.9),
        (0, 0.95, 0.95),
        (0, 0.99, 0.7),
        (DESCRIPTIONS, 0.99, 0.9),
        (DESCRIPTIONS, 0.95, 0.95),
    )
}
CURE_TRIED = {
    f"alpha {a}" + extra: (d, a, phrased)
    for d, phrased, extra, alphas in (
        (0, True, "", (2, 20, 100)),
        (0, False, ", not phrased", (20,)),
        (DESCRIPTIONS, True, ", descriptions", (100,)),
    )
    for a in alphas
}
UCE_TRIED = {
    f"lam {lam}, preserve {p}, guide '{guide}'" + (", descriptions" if d else ""): (d, lam, p, guide)
    for d, lam, p, guide in (
        (0, 0.5, 1, ""),
        (0, 50, 1, ""),
        (0, 0.5, 0.02, ""),
        (0, 0.5, 1, "a picture"),
        (DESCRIPTIONS, 0.5, 0.02, ""),
        (DESCRIPTIONS, 0.5, 1, ""),
    )
}
OCE_TRIED = {  # s, p, g, lam: its parser's defaults, then its script's for a style, and between
    f"s {s:g}, p {p:g}, g {g:g}, lam {lam:g}" + (", descriptions" if d else ""): (d, (s, p, g, lam))
    for d, s, p, g, lam in (
        (0, 1, 0.3, 0.5, 1.5),
        (0, 500, 1, 10, 10),
        (0, 100, 1, 10, 10),
        (0, 100, 0.3, 0.5, 1.5),
        (0, 20, 0.3, 0.5, 1.5),
        (DESCRIPTIONS, 20, 0.3, 0.5, 1.5),
    )
}
NEGATIVE_TRIED = {"name": 0, "name and descriptions": DESCRIPTIONS}


def plan(target: str, descriptions: int):
    """PURE's plan for a target: what it is to forget and to retain, which every peer gets too."""
    from . import erasers

    return (
        erasers.character_plan(target, descriptions=descriptions)
        if target in CHARACTERS
        else erasers.style_plan(target, descriptions // 2)
    )


def bare(anchors, _role: str = "") -> list[str]:
    """The texts of a side of a plan as they are."""
    return [line for a in anchors for line in a.lines.splitlines() or [""]]


def phrased(anchors, role: str) -> list[str]:
    """The prompts that PURE captures for a side of a plan, but for those with words that the miniature text encoder was
    not trained on."""
    from .erasers import phrasings

    return [p for p in phrasings(anchors, role) if all(w in studio.word_ids() for w in p.replace(",", " ").split())]


def rows_of_both(asked, worded, encode):
    """Embeddings of every token of what is to forget and of what is to keep; worded: bare or phrased."""
    sides = ((asked.forget, "forget"), (asked.retain, "retain"))
    return [peers.token_rows(worded(side, role), encode) for side, role in sides]


def text_basis(target, setting, encode=studio.encode_text):
    """(128, 128) edit of the text's embeddings; encode: as peers.token_rows takes it."""
    descriptions, forget, retain = setting
    return peers.text_basis_edit(*rows_of_both(plan(target, descriptions), phrased, encode), forget, retain)


def cure(target, setting, encode=studio.encode_text):
    descriptions, alpha, with_phrasings = setting
    rows = rows_of_both(plan(target, descriptions), phrased if with_phrasings else bare, encode)
    return peers.cure_edit(*rows, alpha)


def uce(target, setting, encode=studio.encode_text):
    descriptions, lam, preserve, guide = setting
    asked = plan(target, descriptions)
    tokens = (peers.last_subject_tokens(texts, encode) for texts in (bare(asked.forget), [guide], bare(asked.retain)))
    return peers.uce_edit(*tokens, lam, 1.0, preserve)


def on_the_unet(embedding_edit):
    """An edit of the text's embeddings as one of the U-Net's weights: (weights, negative prompt)."""
    return lambda target, setting: (peers.edited(embedding_edit(target, setting)), "")


def oce(target, setting):
    descriptions, scales = setting
    asked = plan(target, descriptions)
    forget, guide = peers.last_subject_tokens(bare(asked.forget)), peers.last_subject_tokens([""])
    preserve, general = peers.last_subject_tokens(bare(asked.retain)), peers.token_rows(list(ordinary.captions()))
    return peers.rotated(lambda w: peers.oce_rotation(w, forget, guide, preserve, general, scales)), ""


def negative(target, descriptions):
    return None, ", ".join(bare(plan(target, descriptions).forget))


EMBEDDING_EDITS = {"UCE": (uce, UCE_TRIED), "CURE": (cure, CURE_TRIED), "text basis": (text_basis, TEXT_TRIED)}
PEERS = {
    **{name: (on_the_unet(edit), tried) for name, (edit, tried) in EMBEDDING_EDITS.items()},
    "OCE": (oce, OCE_TRIED),
    "negative prompt": (negative, NEGATIVE_TRIED),
}


class Pure:
    """Edits by the nodes; captures are shared between settings."""

    def __init__(self):
        from . import erasers

        self.nodes, self._erasers = erasers, {}

    def eraser(self, **capture):
        key = tuple(sorted(capture.items()))
        if key not in self._erasers:
            first = next(iter(self._erasers.values()), None)
            self._erasers[key] = self.nodes.Eraser((first.model, first.clip) if first else None, **capture)
        return self._erasers[key]

    def edit(self, target, setting=({}, {}, {}), **capture):
        """(weights, negative prompt) like a peer's; what the setting leaves open is PURE Erase Concept's."""
        plan, build, apply = setting
        kind, make = (
            ("object or character", self.nodes.character_plan)
            if target in CHARACTERS
            else ("artistic style", self.nodes.style_plan)
        )
        own, weights = self.nodes.settings_of(kind, 0.5)
        build, apply = {"keep_weight": own.keep_weight, **build}, {"weights": weights, **apply}
        with torch.inference_mode():
            return self.nodes.narrow(self.eraser(**capture).erase(make(target, **plan), apply, **build)), ""
