"""Which kept concept is most like what is to be forgotten, by what the model renders for both."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .activations import Activations
from .prompts import EMPTY

# Likeness from which a kept concept saves much of the forgotten one. On the miniature model, descriptions of the same
# character have .66 to .86 to its name, other characters at most .56 (.61 where only two are kept).
TWIN = 0.63
ENOUGH = 4  # kept concepts from which likeness can be told: with fewer, what they share is not known


@dataclass(frozen=True)
class Neighbour:
    """A forgotten and a kept concept and how alike they are rendered: 1 alike, 0 unrelated, below 0 opposed."""

    forgotten: str
    kept: str
    likeness: float


def closest_kept(forget: Activations, retain: Activations) -> list[Neighbour]:
    """For each forgotten concept the kept one that is most like it, the closest pair first.

    Likeness is the mean over all sites of the cosine between the two concepts' mean rows, both less the mean of all the
    other kept ones (the empty prompt among them). Not in the paper (our choice).
    """
    concepts = retain.anchors.concepts
    kept = [i for i, concept in enumerate(concepts) if concept != EMPTY]
    if len(concepts) < 2:
        return []
    likeness = torch.zeros(len(forget.anchors.concepts), len(kept), dtype=torch.float64)
    for name in forget.moments:
        ours = forget.sums[name] / torch.tensor(forget.rows, dtype=torch.float64)[:, None]
        theirs = retain.sums[name] / torch.tensor(retain.rows, dtype=torch.float64)[:, None]
        for at, i in enumerate(kept):
            others = (theirs.sum(0) - theirs[i]) / (len(concepts) - 1)
            likeness[:, at] += torch.nn.functional.cosine_similarity(ours - others, (theirs[i] - others)[None], dim=1)
    likeness /= len(forget.moments)
    pairs = [
        Neighbour(concept, concepts[kept[int(row.argmax())]], float(row.max()))
        for concept, row in zip(forget.anchors.concepts, likeness, strict=True)
    ]
    return sorted(pairs, key=lambda pair: -pair.likeness)


def describe_closest(pairs: list[Neighbour], kept: int) -> list[str]:
    """A warning for each forgotten concept that has a twin among so many kept ones."""
    if kept < ENOUGH:
        return []
    return [
        f"{pair.kept!r} in the keep list is rendered almost like {pair.forgotten!r} (likeness {pair.likeness:.2f}), "
        "so keeping it saves much of the concept. Remove it from the keep list."
        for pair in pairs
        if pair.likeness >= TWIN
    ]
