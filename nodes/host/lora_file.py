"""The edits of a MODEL as one ordinary LoRA file, exact on the MODEL as it was before the first of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.model_base
import comfy.utils
import torch
from safetensors.torch import save_file

from ...pure_core.basis import check_offered
from ...pure_core.errors import PureError
from ...pure_core.lora import DTYPES, dense_factors, join_factors, lora_factors, lora_tensors, plain_tensor
from ...pure_core.whole_file import new_file
from .labels import lora_labels
from .patches import ProjectionAdapter, edits_of, is_inside_merge, patched_after, recipes_of, spans_of
from .paths import check_room, embeds
from .reporting import check_cancelled
from .sites import ROOT, diffusion_model
from .weights import effective_weight


class SavedLoRA(NamedTuple):
    """A written LoRA file: where it is, and the rank of each of its matrices."""

    path: Path
    ranks: dict[str, int]


def save_lora(model: Any, target: Path, dtype: str, embed_recipe: bool, step: Callable[[], None]) -> SavedLoRA:
    """Writes all edits of a MODEL, and everything that came between them, as one LoRA.

    Raises PureError where there is none, or where a merge makes it no LoRA any more.
    """
    check_offered("dtype", dtype, tuple(DTYPES))
    check_edits(model)
    spans, recipes = spans_of(model), recipes_of(model)
    names = lora_names(model, list(spans))
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for key in spans:
        own, rank = tensors_of(model, key, spans[key], names[key], dtype)
        tensors.update(own)
        ranks |= {names[key]: rank} if rank else {}
        step()
        check_cancelled()
    head = {"format": "pure-lora", "version": 1, "ranks": ranks, **({"edits": recipes} if embeds(embed_recipe) else {})}
    metadata = {**lora_labels(model, target.stem), "pure": json.dumps(head)}
    check_room(target, sum(t.nbytes for t in tensors.values()))
    with new_file(target) as file:
        save_file(tensors, file.part, metadata=metadata)
    return SavedLoRA(file.path, ranks)


def check_edits(model: Any) -> None:
    """Raises PureError unless the MODEL carries an edit that is still a LoRA."""
    if not edits_of(model):
        if is_inside_merge(model):
            raise PureError(
                "The edit on this MODEL came in through a merge, so it is no LoRA any more. Save the LoRA from the "
                "MODEL before the merge, or save a checkpoint."
            )
        raise PureError(
            "This MODEL carries no PURE edit, so there is nothing to save. Connect the MODEL from PURE Apply "
            "Projection (strength above 0), with no node after it that drops its patches."
        )
    spans = spans_of(model)
    merged = [key for key, (start, _) in spans.items() if any(entry[2] != 1.0 for entry in model.patches[key][start:])]
    merged += [key for key in patched_after(model) if any(entry[2] != 1.0 for entry in model.patches[key])]
    if merged:
        raise PureError(
            "A merge after the first PURE edit leaves only a part of it on this MODEL, which no LoRA can hold. Merge "
            "before the first edit, or save a checkpoint."
        )


def tensors_of(
    model: Any, key: str, span: tuple[int, int], name: str, dtype: str
) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors that a file holds for one parameter, and their rank (0 for a bias or norm)."""
    before, pairs, change = changes(model, key, span)
    if before.dim() == 1:
        return plain_tensor(name, change, dtype, bias=key.endswith(".bias")), 0
    up, down = join_factors(pairs)
    return lora_tensors(name, up, down, dtype, tuple(before.shape[2:])), up.shape[1]


def changes(
    model: Any, key: str, span: tuple[int, int]
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """The parameter before a span of its patches; the factors (up, down) of each patch in it, in float64, of the
    parameter as a matrix; and their sum, the change.

    They are computed from the weight just before the first edit, so the file is exact on the base with the LoRAs
    before.
    """
    before = effective_weight(model, key, span[0]).double()
    weight, pairs = before.clone(), []
    for entry in model.patches[key][slice(*span)]:
        now, factors = apply_entry(weight, entry, key)
        if before.dim() > 1:
            pairs.append(factors or dense_factors((now - weight).flatten(1)))
        weight = now
    return before, pairs, weight - before


def apply_entry(
    weight: torch.Tensor, entry: tuple[Any, ...], key: str
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """The parameter after one more patch, and the patch's factors where it is an edit of a matrix."""
    strength, patch, strength_model, offset, function = entry
    if not isinstance(patch, ProjectionAdapter) or strength_model != 1.0 or function is not None:
        return comfy.lora.calculate_weight([entry], weight.float(), key).double(), None
    edit, now = patch.carried, weight.clone()
    part = now if offset is None else now.narrow(*offset)
    u, m = (strength * edit.u.to("cpu", torch.float64), edit.m.to("cpu", torch.float64))
    if weight.dim() == 1:
        part -= u @ (m.T @ part)
        return now, None
    up, down = lora_factors(part.clone(), u, m, edit.side)
    part += up @ down
    if offset is not None:  # a slice of the rows: the rest of `up` is zero
        padded = up.new_zeros(weight.shape[0], up.shape[1])
        padded[offset[1] : offset[1] + offset[2]] = up
        up = padded
    return now, (up, down)


def lora_names(model: Any, keys: list[str]) -> dict[str, str]:
    """The name of each parameter in a LoRA file, as the host, kohya's scripts and diffusers read it.

    SD 1 and 2 have diffusers' block names, the only ones that diffusers loads for them; all others the model's own, as
    kohya's scripts have them.
    """
    own = {key: key.removeprefix(ROOT) for key in keys}
    config = model.model.model_config.unet_config
    unet = "transformer_depth" in config and "model_channels" in config
    if unet and not isinstance(model.model, (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner)):
        to_diffusers = {v: k for k, v in comfy.utils.unet_to_diffusers(config).items()}
        own = {key: to_diffusers.get(name, name) for key, name in own.items()}
    names = {key: "lora_unet_" + name.rpartition(".")[0].replace(".", "_") for key, name in own.items()}
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    for key, name in names.items():
        if known.get(name) != key.removesuffix(".bias") + (".weight" if key.endswith(".bias") else ""):
            raise PureError(
                f"This ComfyUI would not find {name} again. Save a checkpoint instead, and please report this with the "
                f"MODEL's name ({type(diffusion_model(model)).__name__})."
            )
    return names
