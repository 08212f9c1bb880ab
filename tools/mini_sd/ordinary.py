"""Captions of ordinary pictures of the toy world: unnamed creatures and plain shapes, in no artist's style."""

from __future__ import annotations

import random

from .world import CHARACTERS, caption, sample_scene

COUNT, CREATURES = 128, 0.75


def captions(count: int = COUNT, creatures: float = CREATURES, seed: int = 0) -> tuple[str, ...]:
    """Distinct captions of the world's own grammar, so many of them of creatures; never of a character's looks."""
    rng = random.Random(f"ordinary {seed}")
    wanted = {"creature": round(count * creatures)}
    wanted["shapes"] = count - wanted["creature"]
    out: dict[str, str] = {}
    while any(wanted.values()):
        scene = sample_scene(rng)
        plain = scene.style == "none" and scene.creature not in CHARACTERS.values()
        text = caption(scene, rng)
        if plain and wanted.get(scene.kind) and text not in out:
            wanted[scene.kind] -= 1
            out[text] = scene.kind
    return tuple(out)
