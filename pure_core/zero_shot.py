"""What pictures show, told by CLIP without training (zero-shot): shares before and after an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from .errors import PureError
from .ordinary import NEUTRAL
from .prompts import anchor_prompts, read_lines, refuse_shared

SCALE = 100.0  # CLIP's learned logit scale, at which its training clips it (Radford et al., 2021, section 2.5)
# Cosine that a picture has at least to the words that fit it best. CLIP's lie between 0 and .4 (Hessel et al., 2021);
# vectors that have nothing to do with each other stay below .1 in CLIP's widths.
RELATED = 0.1
NOTHING = "nothing in particular"  # what none of the listed words fits better than "a picture" does
GONE, KEPT = 0.25, 0.9  # of what was seen before: less is left of an erased concept, more of a kept one
FEW = 4  # pictures of the concept before the edit, below which nothing can be told


@dataclass(frozen=True)
class Words:
    """What pictures are told by: names, and the texts of each; the first `forgotten` are the concept's."""

    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    forgotten: int


def words_of(forget: str, keep: str, kind: str) -> Words:
    """A class for each line of both boxes, in the kind's phrasings, and one for nothing in particular.

    Raises PureError where there is nothing to look for or where a line is in both boxes.
    """
    forgotten, kept = (read_lines(box).lines for box in (forget, keep))
    if not forgotten:
        raise PureError("The forget box is empty. Write there what was erased: its name, or what it looks like.")
    refuse_shared(forgotten, kept)
    pairs = [*anchor_prompts(forget, "forget", kind).pairs, *anchor_prompts(keep, "retain", kind).pairs]
    texts = [tuple(text for concept, text in pairs if concept == line) for line in (*forgotten, *kept)]
    return Words((*forgotten, *kept, NOTHING), (*texts, NEUTRAL["pictures"]), len(forgotten))


def class_embedding(texts: Tensor) -> Tensor:
    """(width,) unit vector of a class from its texts' embeddings (n, width): the mean of their unit vectors.

    Prompt ensembling in embedding space (Radford et al., 2021, section 3.1.4).
    """
    return normalize(normalize(texts.double(), dim=-1).mean(0), dim=0)


def cosines(pictures: Tensor, classes: Tensor) -> Tensor:
    """(n, classes) cosine similarities of pictures' embeddings (n, width) and classes' (classes, width)."""
    return normalize(pictures.double(), dim=-1) @ normalize(classes.double(), dim=-1).T


def probabilities(similar: Tensor, scale: float = SCALE) -> Tensor:
    """(n, classes) softmax(scale * cosine): zero-shot class probabilities (Radford et al., 2021, section 3.1.2)."""
    return (scale * similar).softmax(-1)


@dataclass(frozen=True)
class Proportion:
    """hits of n."""

    hits: int
    n: int

    @property
    def value(self) -> float | None:
        return self.hits / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval (Wilson, 1927); all of 0 to 1 where nothing was counted."""
        if not self.n:
            return 0.0, 1.0
        from scipy.stats import binomtest  # it takes half a second, which a host that starts need not wait

        low, high = binomtest(self.hits, self.n).proportion_ci(method="wilson")
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits} of {self.n} ({100 * low:.0f} to {100 * high:.0f} %)"


@dataclass(frozen=True)
class Judged:
    """before, after: (n, classes) probabilities of the same n pictures before and after an edit."""

    words: Words
    before: Tensor
    after: Tensor

    def best(self, of: Tensor) -> list[int]:
        """The class that fits each picture best."""
        return [int(i) for i in of.argmax(-1)]

    def target(self, of: Tensor) -> Proportion:
        """Target proportion: how many pictures show what was to be forgotten."""
        seen = self.best(of)
        return Proportion(sum(i < self.words.forgotten for i in seen), len(seen))

    def retention(self, wanted: Sequence[int] | None = None) -> Proportion:
        """Of the pictures that showed one of the classes before the edit (all that are kept, where none are given),
        how many show the same after it."""
        wanted = range(self.words.forgotten, len(self.words.names) - 1) if wanted is None else wanted
        pairs = [(a, b) for a, b in zip(self.best(self.before), self.best(self.after), strict=True) if a in wanted]
        return Proportion(sum(a == b for a, b in pairs), len(pairs))


def check_related(similar: Tensor) -> None:
    """Raises PureError where no words fit any picture: texts and pictures are then not of one CLIP."""
    closest = float(similar.amax(-1).mean())
    if not closest >= RELATED:
        raise PureError(
            f"No words fit any of the pictures (closest: {closest:.2f}), so clip and clip_vision are not two halves of "
            "one CLIP. The CLIP inside SD 1.5 checkpoints and in clip_l.safetensors lacks a part that this needs: load "
            "model.safetensors of openai/clip-vit-large-patch14 by Load CLIP and by Load CLIP Vision."
        )


def describe(judged: Judged) -> tuple[str, list[str]]:
    """The report, one sentence to act on first, and the warnings in it."""
    before, after, kept = judged.target(judged.before), judged.target(judged.after), judged.retention()
    still, lost = 0 < before.hits * GONE < after.hits, kept.interval[1] < KEPT
    warnings = []
    if not before.hits:
        verdict = "Nothing can be said about the concept."
        warnings.append(
            "No picture shows the concept before the edit. Draw prompts that ask for it, or describe it here as CLIP "
            "would see it: made-up names mean nothing to CLIP."
        )
    else:
        word = "Still there" if still else "Mostly gone" if after.hits else "Gone"
        verdict = f"{word}: the concept is in {after.hits or 'none'} of {after.n} pictures; it was in {before.hits}."
        if before.hits < FEW:
            warnings.append(
                f"Only {before.hits} of {before.n} pictures showed the concept before the edit, which says little. "
                "Draw more that ask for it."
            )
    if kept.n:
        verdict += f" What you keep: {kept.hits} of {kept.n} pictures still show the same."
    advice = {
        (True, False): " Raise amount, or describe the concept in more words.",
        (False, True): " Lower amount, or add what changed to keep.",
        (True, True): " Describe the concept in more words, and add what changed to keep.",
    }
    lines = [
        *(f"Warning: {w}" for w in warnings),
        verdict + advice.get((still, lost), ""),
        "CLIP can be wrong: look at what it says below each picture.",
        f"Concept before: {before}; after: {after}. Kept: {kept}. In brackets: 95 % intervals.",
    ]
    for i, name in enumerate(judged.words.names):
        seen = [judged.best(of).count(i) for of in (judged.before, judged.after)]
        same = judged.retention([i]).hits
        lines.append(f"{name}: {seen[0]} before, {seen[1]} after, {same} of these in the same pictures.")
    return "\n".join(lines), warnings


def captions(judged: Judged) -> list[str]:
    """For each pair two lines: how sure CLIP is of what it sees before, and after. Shares first: names may be cut."""

    def told(row: Tensor) -> str:
        best = int(row.argmax())
        return f"{100 * float(row[best]):.0f} % {judged.words.names[best]}"

    return [f"{told(a)}\n{told(b)}" for a, b in zip(judged.before, judged.after, strict=True)]


def as_numbers(judged: Judged) -> dict[str, Any]:
    """The same for programs."""

    def numbers(of: Proportion) -> dict[str, Any]:
        return {"hits": of.hits, "n": of.n, "share": of.value, "interval": list(of.interval)}

    names = judged.words.names
    return {
        "target_before": numbers(judged.target(judged.before)),
        "target_after": numbers(judged.target(judged.after)),
        "retention": numbers(judged.retention()),
        "pictures": [
            {"before": names[a], "after": names[b]}
            for a, b in zip(judged.best(judged.before), judged.best(judged.after), strict=True)
        ],
    }
