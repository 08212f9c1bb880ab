"""The weight adapter that carries the edit, and putting it on a clone of a MODEL."""

from __future__ import annotations

import json

import comfy.lora
import comfy.model_management
import torch
from comfy.weight_adapter.base import WeightAdapterBase

from ...pure_core.activations import layer_difference
from ...pure_core.errors import PureError
from ...pure_core.files import recipe_of
from ...pure_core.projection import ConceptBasis, check_strength, iterate, weight_delta
from .layers import BLOCKS, Layer, cross_attention_layers, fingerprint

WHERE = {"keys and values": ("keys", "values"), "values": ("values",), "output": ("output",)}
PLACES = ("all", *BLOCKS.values())


class ProjectionAdapter(WeightAdapterBase):
    """W -> W - s U (M^T W) on the left side (keys, values), W - s (W U) M^T on the right (output).

    weights = (U (d, r), M (d, r), side, recipe); the host rebuilds adapters as type(a)(a.loaded_keys, a.weights), so
    everything is in there. It sees the weight as earlier patches left it, which makes the edit exact on top of LoRAs.
    The recipe, a JSON text that all weights of an edit share, is what saved files say of it.
    """

    name = "pure"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        u, m, side = self.weights[:3]
        cast = comfy.model_management.cast_to_device
        u, m = (
            cast(t, weight.device, torch.float32) for t in (u, m)
        )  # some hosts hand in fp16: the product is formed in float32
        whole = weight.to(torch.float32)
        return weight.copy_(whole - function(strength * weight_delta(whole, u, m, side)))  # cast once


def apply_basis(model, basis: ConceptBasis, strength: float, where: str, iterations: int, places: str):
    """A clone of MODEL that carries the edit, the layers edited and warnings; the MODEL itself at strength 0.

    Raises PureError where the basis does not fit, a choice is not offered, or the host did not take every weight.
    """
    check_strength(strength)
    for name, value, offered in (("where", where, WHERE), ("layers", places, PLACES)):
        if value not in offered:
            raise PureError(f"{name} is {value!r}, and there are only: {', '.join(offered)}.")
    layers = cross_attention_layers(model)
    check_fit(layers, basis)
    chosen = [layer for layer in layers if places in ("all", layer.place) and basis.layers[layer.name].rank]
    if not chosen:
        raise PureError(f"The basis edits no layer in {places!r}: choose all layers.")
    patches = {}
    recipe = json.dumps(
        {
            "rule": basis.rule,
            "structure": basis.structure,
            **recipe_of(basis),
            "strength": strength,
            "where": where,
            "iterations": iterations,
            "layers": places,
            "weights": len(chosen) * len(WHERE[where]),
        }
    )
    for layer in chosen:
        b = basis.layers[layer.name]
        u, m = (t.float().contiguous() for t in iterate(b.u.double(), b.m.double(), iterations))
        for projection in WHERE[where]:
            key = layer.key(projection)
            patches[key] = ProjectionAdapter({key}, (u, m, "right" if projection == "output" else "left", recipe))
    warnings = []
    captured_on = basis.provenance.get("fingerprint")
    if captured_on and captured_on != fingerprint(model, layers):
        warnings.append(
            "The basis was captured on other weights (a fine-tune, LoRAs or an earlier edit make the "
            "difference): look at the pictures, and capture again if the concept is still there."
        )
    if strength == 0:
        return model, chosen, warnings
    edited = model.clone()
    taken = set(edited.add_patches(patches, strength))
    if taken != set(patches):
        raise PureError(
            f"This ComfyUI did not take {len(set(patches) - taken)} of {len(patches)} edits (the first is "
            f"{min(set(patches) - taken)}): the MODEL stays as it was; please report this with the MODEL's name."
        )
    return edited, chosen, warnings


def check_fit(layers: list[Layer], basis: ConceptBasis) -> None:
    """Raises PureError unless names, widths, heads and context width of MODEL and basis are equal."""
    context = basis.provenance.get("context_width")
    difference = layer_difference(
        {layer.name: (layer.width, layer.heads, layer.context) for layer in layers},
        {n: (b.width, b.heads, context) for n, b in basis.layers.items()},
        "this MODEL",
        "the basis",
    )
    if difference:
        raise PureError(
            f"This basis was made for another kind of model: {difference}. Capture and build it on this MODEL."
        )


def effective_weight(model, key: str, count: int | None = None, own: dict | None = None) -> torch.Tensor:
    """float32 copy on the CPU of a weight as the MODEL samples with it: the base and all patches on it (or the first
    `count`), in order.

    own: the MODEL's get_key_patches(), which lists the whole MODEL at each call; whoever asks for many weights asks for
    it once.
    """
    (base, convert), *patches = (own or model.get_key_patches(key))[key]
    return comfy.lora.calculate_weight(
        patches[:count], convert(base.to("cpu", torch.float32, copy=True), inplace=True), key
    )


def edits_of(model) -> dict[str, list[int]]:
    """Per edited key the positions of this pack's adapters in the MODEL's patch list, in order."""
    found = {
        key: [i for i, entry in enumerate(entries) if isinstance(entry[1], ProjectionAdapter)]
        for key, entries in model.patches.items()
    }
    return {key: positions for key, positions in found.items() if positions}


def recipes_of(model) -> list[dict]:
    """The recipes of the edits on a MODEL, each once; raises PureError where a part of an edit was lost."""
    counts: dict[str, int] = {}
    for key, positions in edits_of(model).items():
        for i in positions:
            text = model.patches[key][i][1].weights[3]
            counts[text] = counts.get(text, 0) + 1
    recipes = [json.loads(text) for text in counts]
    for recipe, count in zip(recipes, counts.values(), strict=True):
        if count % recipe["weights"]:
            raise PureError(
                f"Only {count % recipe['weights']} of {recipe['weights']} edited weights are still on this "
                "MODEL: another node dropped the rest; connect the MODEL from PURE Apply Projection itself."
            )
    return recipes


def patched_after(model) -> list[str]:
    """Edited keys that carry a later patch of another node (a LoRA, a merge): that part is not projected."""
    return [key for key, positions in edits_of(model).items() if positions[-1] < len(model.patches[key]) - 1]


def is_inside_merge(model) -> bool:
    """Whether an edit came in with the other MODEL of a merge, where it is no patch of this MODEL's own any more."""

    def holds(value) -> bool:
        return isinstance(value, list) and any(
            isinstance(part, tuple) and len(part) > 1 and (isinstance(part[1], ProjectionAdapter) or holds(part[1]))
            for part in value
        )

    return any(holds(entry[1]) for entries in model.patches.values() for entry in entries)
