"""What a capture knows: the moments of every cross-attention layer, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import PureError
from .moments import Moments, merge

Shape = tuple[object, ...]  # of a layer: (width, heads, ...)
# What must be equal for two captures to be merged: rows of other trajectories are other data.
SAME_TO_MERGE = (
    "steps",
    "recorded_steps",
    "sampler_name",
    "scheduler",
    "cfg",
    "width",
    "height",
    "seed",
    "latents",
    "fingerprint",
)


@dataclass(frozen=True)
class Activations:
    """Per layer (by its module name in the U-Net) the moments of its rows and its head count; and the provenance:
    role, concepts, prompts, the capture's settings, context_width and the fingerprint of the weights."""

    moments: dict[str, Moments]
    heads: dict[str, int]
    provenance: dict[str, Any]

    @property
    def count(self) -> int:
        """Rows per layer."""
        return next(iter(self.moments.values())).count


def layer_difference(a: dict[str, Shape], b: dict[str, Shape], name_a: str, name_b: str) -> str | None:
    """One phrase that says how two sets of layers (name -> (width, heads, ...)) differ; None where they are equal."""
    if a == b:
        return None
    missing = [n for n in (*a, *b) if n not in a or n not in b]
    if missing:
        return (
            f"{name_a} has {len(a)} cross-attention layers and {name_b} has {len(b)}; the first that only one has is "
            f"{missing[0]}"
        )
    first = next(n for n in a if a[n] != b[n])
    return f"layer {first} is (width, heads, context) {a[first]} in {name_a} and {b[first]} in {name_b}"


def shape_of(activations: Activations) -> dict[str, Shape]:
    """name -> (width, heads, context width) of every layer."""
    context = activations.provenance.get("context_width")
    return {n: (m.width, activations.heads[n], context) for n, m in activations.moments.items()}


def merge_activations(a: Activations, b: Activations) -> Activations:
    """Both captures as one; raises PureError where they do not belong together."""
    difference = layer_difference(shape_of(a), shape_of(b), "activations_a", "activations_b")
    if difference:
        raise PureError(f"These captures are of different models: {difference}. Capture both from the same MODEL.")
    for key in SAME_TO_MERGE:
        if a.provenance.get(key) != b.provenance.get(key):
            what = "the weights" if key == "fingerprint" else key
            raise PureError(
                f"These captures differ in {what} ({a.provenance.get(key)} and {b.provenance.get(key)}): capture "
                "both with the same settings."
            )
    if a.provenance.get("role") != b.provenance.get("role"):
        raise PureError(
            f"activations_a has the role {a.provenance.get('role')} and activations_b "
            f"{b.provenance.get('role')}: merge captures of one role only."
        )
    joined = {k: [*a.provenance.get(k, []), *b.provenance.get(k, [])] for k in ("concepts", "prompts")}
    joined["concepts"] = list(dict.fromkeys(joined["concepts"]))
    return Activations({n: merge(m, b.moments[n]) for n, m in a.moments.items()}, a.heads, {**a.provenance, **joined})
