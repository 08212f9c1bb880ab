"""Captions of ordinary pictures of the toy world: unnamed creatures and plain shapes, some in a style."""

from __future__ import annotations

import random

from .world import ARTISTS, CHARACTERS, caption, sample_scene

COUNT, CREATURES, STYLED = 128, 0.75, 0.3


def captions(
    count: int = COUNT, creatures: float = CREATURES, styled: float = STYLED, seed: int = 0
) -> tuple[str, ...]:
    """Distinct captions of the world's own grammar, shares of them of creatures and in a style that is described; never
    of a character's looks."""
    rng = random.Random(f"ordinary {seed}")
    wanted, out = {}, {}
    for kind, n in (("creature", round(count * creatures)), ("shapes", count - round(count * creatures))):
        wanted[kind, True] = round(n * styled)
        wanted[kind, False] = n - wanted[kind, True]
    while any(wanted.values()):
        scene = sample_scene(rng)
        text, sort = caption(scene, rng), (scene.kind, scene.style != "none")
        named = scene.creature in CHARACTERS.values() or any(artist in text for artist in ARTISTS.values())
        if wanted.get(sort) and text not in out and not named:
            wanted[sort] -= 1
            out[text] = sort
    return tuple(out)
