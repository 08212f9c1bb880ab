"""Every eraser as a function of a target, and the settings that were tried for each."""
from __future__ import annotations

import torch

from . import peers
from mini_sd import studio
from mini_sd.world import ARTISTS, CHARACTERS, STYLES

DESCRIPTIONS = 4
# What was tried for each eraser on the choose set, as many as PURE's eight; the first is its published (PURE: the nodes') default.
PURE_TRIED = {  # label: (plan, build, apply)
    "defaults": ({}, {}, {}),
    "keys and values": ({}, {}, {"where": "keys and values"}),
    "retain weight 1": ({}, {"retain_weight": 1.0}, {}),
    "retain weight 8": ({}, {"retain_weight": 8.0}, {}),
    "one description": ({"descriptions": 1}, {}, {}),
    "name alone": ({"descriptions": 0}, {}, {}),
    "per head": ({}, {"structure": "per head"}, {}),
    "per head, retain weight 8": ({}, {"structure": "per head", "retain_weight": 8.0}, {}),
}
PAPER_TRIED = {  # the paper's rule: energies forget / retain, iterations; with one description beside the name, and with all
    f"{f}/{r}, {n} times, {d} descriptions": ({"descriptions": d}, {"rule": "energy", "centering": "none", "forget_energy": f, "retain_energy": r}, {"where": "keys and values", "iterations": n})
    for d in (1, DESCRIPTIONS) for f, r, n in ((0.95, 0.95, 1), (0.9999, 0.5, 1), (0.9999, 0.7, 1), (0.9999, 0.9, 4))}
PAPER = "0.9999/0.5, 1 times, 1 descriptions"
PURE_STYLES_TRIED = {  # for artists; their plan has no name without its descriptions' phrasings to vary
    **{k: PURE_TRIED[k] for k in ("defaults", "keys and values", "retain weight 1", "retain weight 8", "per head", "per head, retain weight 8")},
    "per head, keys and values": ({}, {"structure": "per head"}, {"where": "keys and values"}),
    "no plain things retained": ({"plain": False}, {}, {}),
}
TEXT_TRIED = {f"{f}/{r}" + (", descriptions" if d else ""): (d, f, r) for d in (0, DESCRIPTIONS) for f, r in ((0.99, 0.9), (0.95, 0.95), (0.999, 0.9), (0.99, 0.7))}
CURE_TRIED = {f"alpha {a}" + (", descriptions" if d else ""): (d, a) for d in (0, DESCRIPTIONS) for a in (2, 20, 100, 1000)}
UCE_TRIED = {f"lam {lam}, erase {e}, preserve {p}" + (", descriptions" if d else ""): (d, lam, e, p)
             for d in (0, DESCRIPTIONS) for lam, e, p in ((0.5, 1, 1), (50, 1, 1), (0.5, 0.02, 1), (0.5, 1, 0.02))}
NEGATIVE_TRIED = {"name": 0, "name and descriptions": DESCRIPTIONS}


def words(target: str, descriptions: int) -> list[str]:
    """The texts a peer gets for a target: the same lines that PURE's plan has."""
    from .erasers import describe

    if target in CHARACTERS:
        return [target, *describe(CHARACTERS[target], descriptions)]
    return [ARTISTS[target], *STYLES[target][: descriptions // 2]]


def phrasings(texts: list[str], target: str) -> list[str]:
    """The six anchor phrasings of each text, as PURE has them."""
    from pure_pack.pure_core.prompts import PRESETS

    forms = PRESETS["object or character" if target in CHARACTERS else "artistic style"]
    return [f.replace("{}", t) for t in texts for f in forms if all(w in studio.word_ids() for w in f.replace("{}", "").split())]


def others(target: str) -> list[str]:
    """The texts that a peer is to keep: PURE's retain list, the empty prompt apart."""
    from .erasers import PLAIN

    return [c for c in CHARACTERS if c != target] + ([*(ARTISTS[s] for s in ARTISTS if s != target), *PLAIN] if target in ARTISTS else [])


def text_basis(target, setting):
    descriptions, forget, retain = setting
    return peers.edited(peers.text_basis_edit(peers.token_rows(phrasings(words(target, descriptions), target)), peers.token_rows(["", *phrasings(others(target), target)]), forget, retain)), ""


def cure(target, setting):
    descriptions, alpha = setting
    return peers.edited(peers.cure_edit(peers.token_rows(phrasings(words(target, descriptions), target)), peers.token_rows(["", *phrasings(others(target), target)]), alpha)), ""


def uce(target, setting):
    descriptions, lam, erase, preserve = setting
    return peers.edited(peers.uce_edit(peers.last_subject_tokens(words(target, descriptions)), peers.last_subject_tokens([""]), peers.last_subject_tokens(others(target)), lam, erase, preserve)), ""


def negative(target, descriptions):
    return None, ", ".join(words(target, descriptions))


PEERS = {"UCE": (uce, UCE_TRIED), "CURE": (cure, CURE_TRIED), "text basis": (text_basis, TEXT_TRIED), "negative prompt": (negative, NEGATIVE_TRIED)}


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
        """(weights, negative prompt) like a peer's."""
        plan, build, apply = setting
        planned = self.nodes.character_plan(target, **plan) if target in CHARACTERS else self.nodes.style_plan(target, **plan)
        with torch.inference_mode():
            return self.nodes.narrow(self.eraser(**capture).erase(planned, apply, **build)), ""
