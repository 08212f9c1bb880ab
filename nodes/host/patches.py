"""The weight adapter that carries the edit, and putting it on a clone of a MODEL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, get_args

import comfy.model_management
import torch
from comfy.weight_adapter.base import WeightAdapterBase

from ...pure_core.activations import ModelIdentity, identity_differences, site_difference, weights_distance
from ...pure_core.basis import ConceptBasis, Edit, check_offered
from ...pure_core.errors import PureError
from ...pure_core.projection import Side, check_strength, iterate, weight_delta
from .identity import weights_identity
from .sites import ROOT, AttentionSite, Projection, attention_sites, family_name

Weights = Literal["values", "keys and values", "output"]
Place = Literal["all", "early", "middle", "late"]
Factors = tuple[torch.Tensor, torch.Tensor]
PROJECTIONS: dict[Weights, tuple[Projection, ...]] = {
    "values": ("values",),
    "keys and values": ("keys", "values"),
    "output": ("output",),
}
PLACES: tuple[Place, ...] = get_args(Place)
# Relative distance of value weights up to which a basis of one MODEL erased from its fine-tunes as well as their own
# did, and up to which it was tried on fine-tunes that still drew well (docs/tables/transfer.md, `nox -s efficacy`).
NEAR, FAR = 0.03, 0.1
LOOK = "Look at the pictures."
AGAIN = "Look at the pictures, and capture again if the concept is still there."


class Carried(NamedTuple):
    """What an adapter carries: the factors U, M (d, r) and the side that they act on; the recipe, a JSON text that all
    weights of an edit share; and how many patches each weight of the MODEL had when the edit came.
    """

    u: torch.Tensor
    m: torch.Tensor
    side: Side
    recipe: str
    before: Mapping[str, int]


class ProjectionAdapter(WeightAdapterBase):
    """W -> W - s U (M^T W) on the left side (keys, values), W - s (W U) M^T on the right (output); biases on the left.

    The host rebuilds adapters as type(a)(a.loaded_keys, a.weights), so all data is in `weights`. It sees the weight as
    earlier patches left it, which makes the edit exact on top of LoRAs.
    """

    name = "pure"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]):
        self.loaded_keys = loaded_keys
        self.weights = weights

    @property
    def carried(self) -> Carried:
        return Carried(*self.weights)

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> torch.Tensor:
        edit, cast = self.carried, comfy.model_management.cast_to_device
        # Some hosts hand in fp16: the product is formed in float32.
        u, m = (cast(t, weight.device, torch.float32) for t in (edit.u, edit.m))
        whole = weight.to(torch.float32)
        # Cast once; in place, since a slab is a view of its weight.
        return weight.copy_(whole - function(strength * weight_delta(whole, u, m, edit.side)))


def apply_basis(
    model: Any, basis: ConceptBasis, strength: float, weights: Weights, iterations: int, place: Place
) -> tuple[Any, list[AttentionSite], list[str]]:
    """A clone of MODEL that carries the edit, the sites edited and warnings; the MODEL itself at strength 0.

    Raises PureError where the basis does not fit, a choice is not offered, or the host did not take every weight.
    """
    check_strength(strength)
    check_offered("weights", weights, tuple(PROJECTIONS))
    check_offered("layers", place, PLACES)
    sites = attention_sites(model)
    check_fit(sites, basis)
    check_projections(model, sites, weights)
    chosen = [site for site in sites if place in ("all", place_of(site)) and basis.sites[site.name].rank]
    if not chosen:
        raise PureError(f"The basis edits none of the {place} layers: choose all layers.")
    slabs = [(site, p, slab) for site in chosen for p in PROJECTIONS[weights] for slab in site.weights[p]]
    applied = {"strength": strength, "weights": weights, "iterations": iterations, "layers": place, "slabs": len(slabs)}
    made = asdict(basis.recipe) if basis.recipe else {}
    recipe = json.dumps({"rule": basis.rule, "structure": basis.structure, **made, **applied})
    before = {key: len(entries) for key, entries in model.patches.items()}
    factors = {site.name: factors_of(basis.sites[site.name], iterations) for site in chosen}
    edits = {}
    for site, projection, slab in slabs:
        side: Side = "right" if projection == "output" else "left"
        carried = Carried(*factors[site.name][projection != "keys"], side, recipe, before)
        edits[slab.patch_key] = ProjectionAdapter({slab.key}, carried)
    warnings = of_other_weights(basis.model, weights_identity(model, sites))
    if strength == 0:
        return model, chosen, warnings
    edited = model.clone()
    taken = set(edited.add_patches(edits, strength))
    if taken != set(edits):
        lost = [slab.key for *_, slab in slabs if slab.patch_key not in taken]
        raise PureError(
            f"This ComfyUI did not take {len(lost)} of {len(edits)} edits (the first is {lost[0]}). The MODEL stays "
            "as it was; please report this with the MODEL's name."
        )
    return edited, chosen, warnings


def of_other_weights(captured: ModelIdentity, own: ModelIdentity) -> list[str]:
    """A warning where a basis was captured on other weights than those that it is applied to: how far they are apart,
    and what that meant for the miniature model's fine-tunes (docs/evidence.md)."""
    if not identity_differences(captured, own):
        return []
    distance = weights_distance(captured, own)
    why = "a fine-tune, LoRAs or an earlier edit make the difference"
    if distance is None:
        return [f"The basis was captured on other weights ({why}). {AGAIN}"]
    told = f"The basis was captured on other weights: this MODEL's are {distance:.1%} away ({why})."
    if distance <= NEAR:
        return [f"{told} So near, an erasure carried over whole in our tests. {LOOK}"]
    if distance <= FAR:
        return [f"{told} So far, a little more of the concept was left in our tests. {AGAIN}"]
    return [f"{told} So far, nothing was tested: capture on this MODEL."]


def factors_of(edit: Edit, iterations: int) -> tuple[Factors, Factors]:
    """U, M of a site's keys, and of what is rendered, float32, applied so many times.

    They differ where something is drawn instead: keys say where, and only lose the concept.
    """

    def factors(left: torch.Tensor) -> Factors:
        u, m = iterate(left.double(), edit.m.double(), iterations)
        return u.float().contiguous(), m.float().contiguous()

    taken = factors(edit.u)
    return taken, factors(edit.left) if edit.refill.shape[1] else taken


def place_of(site: AttentionSite) -> Place:
    """The third of the MODEL's depth that a site is in."""
    return PLACES[1 + min(int(site.depth * 3), 2)]


def check_fit(sites: list[AttentionSite], basis: ConceptBasis) -> None:
    """Raises PureError unless names, widths, heads and context widths of MODEL and basis are equal."""
    difference = site_difference({site.name: site.shape for site in sites}, basis.shapes, "this MODEL", "the basis")
    if difference:
        raise PureError(
            f"This basis was made for another kind of model: {difference}. Capture and build it on this MODEL."
        )


def check_projections(model: Any, sites: list[AttentionSite], weights: Weights) -> None:
    """Raises PureError where a projection cannot be edited in this family, and says why."""
    missing = [p for p in PROJECTIONS[weights] if p not in sites[0].weights]
    if not missing:
        return
    if missing[0] == "output":
        why = "text and picture share its attention's output"
    elif sites[0].family.joint:
        why = "its text and picture share one attention, where only the text's values say what is drawn"
    else:
        why = "a norm follows its keys, so an edit of them would not be a projection"
    raise PureError(
        f"weights is {weights!r}, which this MODEL ({family_name(model)}) does not allow: {why}. Choose values."
    )


def edits_of(model: Any) -> dict[str, list[int]]:
    """Per edited key the positions of this pack's adapters in the MODEL's patch list, in order."""
    found = {
        key: [i for i, entry in enumerate(entries) if isinstance(entry[1], ProjectionAdapter)]
        for key, entries in model.patches.items()
    }
    return {key: positions for key, positions in found.items() if positions}


def carried_by(model: Any) -> list[Carried]:
    """What each edit on a MODEL carries, in the order in which they came; one adapter of each."""
    found: dict[str, Carried] = {}
    for key, positions in edits_of(model).items():
        for i in positions:
            carried = model.patches[key][i][1].carried
            found.setdefault(carried.recipe + str(sum(carried.before.values())), carried)
    return sorted(found.values(), key=lambda carried: sum(carried.before.values()))


def recipes_of(model: Any) -> list[dict[str, Any]]:
    """The recipes of the edits on a MODEL, each once; raises PureError where a part of an edit was lost."""
    counts: dict[str, int] = {}
    for key, positions in edits_of(model).items():
        for i in positions:
            text = model.patches[key][i][1].carried.recipe
            counts[text] = counts.get(text, 0) + 1
    recipes = [json.loads(text) for text in counts]
    for recipe, count in zip(recipes, counts.values(), strict=True):
        if count % recipe["slabs"]:
            raise PureError(
                f"Only {count % recipe['slabs']} of {recipe['slabs']} edited weights are still on this MODEL: "
                "another node dropped the rest. Connect the MODEL from PURE Apply Projection itself."
            )
    return recipes


def concepts_of(model: Any) -> list[str]:
    """What the edits on a MODEL erase, as far as their recipes say it."""
    return [concept for recipe in recipes_of(model) for concept in recipe.get("forget", {}).get("concepts", ())]


def spans_of(model: Any) -> dict[str, tuple[int, int]]:
    """Per key of the diffusion model the patches from the first edit of the MODEL to its last one, as a slice.

    Everything in it is what one file of the edits has to hold, whoever put it there; keys where it is empty are left
    out.
    """
    edits, own = carried_by(model), edits_of(model)
    if not edits:
        return {}
    spans = {}
    for key in (key for key in model.patches if key.startswith(ROOT)):
        start, end = edits[0].before.get(key, 0), edits[-1].before.get(key, 0)
        spans[key] = (start, max(end, own[key][-1] + 1 if key in own else 0))
    return {key: (start, end) for key, (start, end) in spans.items() if end > start}


def patched_after(model: Any) -> list[str]:
    """Keys of the diffusion model with a patch that came after the last edit (a LoRA, a merge).

    None without an edit.
    """
    edits, spans = carried_by(model), spans_of(model)
    if not edits:
        return []
    ends = {key: spans[key][1] if key in spans else edits[-1].before.get(key, 0) for key in model.patches}
    return [key for key, end in ends.items() if key.startswith(ROOT) and len(model.patches[key]) > end]


def is_inside_merge(model: Any) -> bool:
    """Whether an edit came in with the other MODEL of a merge, where it is no patch of this MODEL's own any more."""

    def holds(value: Any) -> bool:
        return isinstance(value, list) and any(
            isinstance(part, tuple) and len(part) > 1 and (isinstance(part[1], ProjectionAdapter) or holds(part[1]))
            for part in value
        )

    return any(holds(entry[1]) for entries in model.patches.values() for entry in entries)
