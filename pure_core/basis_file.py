"""The safetensors format of a basis. A file may be a stranger's: all of it is checked, nothing is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .activations import ModelIdentity, SiteShape
from .basis import MATRICES, TENSORS, ConceptBasis, Edit, Recipe, RuleName, Structure
from .checked_file import MOST_SITES, check_file, read_head, reading, typed
from .contrast import LONGEST_REFILL
from .errors import PureError
from .rules import RULES
from .whole_file import new_file

FORMAT, VERSION = "pure-basis", 2
ORTHONORMAL = 1e-5
MAY_LACK = ("refill",)  # tensors that a file has only where they are not empty
NEEDED = tuple(part for part in TENSORS if part not in MAY_LACK)
RENAMED = {  # settings of files of version 1, as they are called today
    "retain_energy": "keep_energy",
    "retain_weight": "keep_weight",
    "retain mean": "mean of keep",
}


def save_basis(basis: ConceptBasis, target: Path, embed_recipe: bool = True) -> Path:
    """Writes a basis to a new file and returns where it is.

    Without the recipe its settings, concepts and prompts are left out, but not which weights it is of.
    """
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "rule": basis.rule,
        "structure": basis.structure,
        "model": asdict(basis.model),
        "sites": {name: asdict(shape) for name, shape in basis.shapes.items()},
    }
    if embed_recipe and basis.recipe:
        head["recipe"] = asdict(basis.recipe)
    tensors = {
        f"{name}.{part}": getattr(edit, part).contiguous().clone()
        for name, edit in basis.sites.items()
        for part in TENSORS
        if part not in MAY_LACK or getattr(edit, part).numel()
    }
    with new_file(target) as file:
        save_file(tensors, file.part, metadata={"pure": json.dumps(head)})
    return file.path


def load_basis(source: Path, step: Callable[[], None] = lambda: None) -> ConceptBasis:
    """Reads a basis and checks all of it; `step` is called after each site. PureError on a file that is not one."""
    source = Path(source)
    with reading(source, "a PURE basis", "Save the basis again"):
        check_file(source)
        with safe_open(source, framework="pt") as file:
            head = read_head((file.metadata() or {})["pure"], source.name, FORMAT, (1, VERSION))
            head = upgrade_head(head) if head["version"] == 1 else head
            shapes = {str(name): typed(SiteShape, shape) for name, shape in head["sites"].items()}
            if not 0 < len(shapes) <= MOST_SITES:
                raise ValueError(f"{len(shapes)} sites")
            rule = typed(RuleName, head["rule"])
            structure = typed(Structure, head["structure"])
            model, recipe = typed(ModelIdentity, head["model"]), head.get("recipe")
            recipe = None if recipe is None else typed(Recipe, recipe)
            keys = set(file.keys())
            needed, may_be = ({f"{name}.{part}" for name in shapes for part in parts} for parts in (NEEDED, TENSORS))
            if not needed <= keys <= may_be:
                raise PureError(f"{source.name} does not hold the layers that it lists: it is damaged. Save it again.")
            sites = {}
            for name, shape in list(shapes.items()):
                found = {part: file.get_tensor(f"{name}.{part}") for part in TENSORS if f"{name}.{part}" in keys}
                edit = Edit(**dict.fromkeys(MAY_LACK, torch.zeros(*found["u"].shape[:1], 0)) | found)
                edit = RULES[rule].of_version_1(edit) if head["version"] == 1 else edit
                fault = edit_fault(edit, shape) or structure_fault(edit, shape, structure) or RULES[rule].fault(edit)
                if fault:
                    raise PureError(f"{source.name} is damaged: in layer {name} {fault}. Save the basis again.")
                sites[name], shapes[name] = edit, replace(shape, width=edit.u.shape[0])
                step()
            return ConceptBasis(sites, shapes, rule, structure, model, recipe)


def upgrade_head(head: dict[str, Any]) -> dict[str, Any]:
    """The head of a file of version 1 as version 2 has it; shapes' widths come from the tensors' later check."""
    came = head.get("provenance", {})
    context, settings = head.get("context_width"), head.get("settings", {})
    new = {
        "format": FORMAT,
        "version": 1,
        "rule": head["rule"],
        "structure": head["structure"],
        "model": {"family": str(came.get("model", "")), "weights": str(head.get("fingerprint") or "")},
        "sites": {name: {"width": 0, "heads": heads, "context": context} for name, heads in head["heads"].items()},
    }
    if settings and "forget" in came:
        capture = {
            k: came[k] for k in ("steps", "recorded_steps", "cfg", "width", "height", "sampler_name", "scheduler")
        }
        for name, former, default in (("seed", "seed", 0), ("seeds", "latents", 1)):
            capture[name] = came["forget"].get(former, came.get(former, default))
        anchors = {r: {k: came[r].get(k, []) for k in ("concepts", "prompts")} for r in ("forget", "retain")}
        rule = {"rule": head["rule"], "structure": head["structure"]}
        named = {RENAMED.get(name, name): RENAMED.get(value, value) for name, value in {**settings, **rule}.items()}
        new["recipe"] = {"settings": named, "capture": capture, **anchors}
    return new


def edit_fault(edit: Edit, shape: SiteShape) -> str | None:
    """What is wrong with an edit that was read from a file; None where nothing is."""
    for part in TENSORS:
        tensor, dims = getattr(edit, part), 2 if part in MATRICES else 1
        if tensor.dtype != torch.float32 or tensor.dim() != dims:
            return f"{part} is {tensor.dtype} with {tensor.dim()} dimensions, not float32 with {dims}"
        if not torch.isfinite(tensor).all():
            return f"{part} is not finite"
    d, r = edit.u.shape
    wanted = ((edit.m.shape, (d, r)), (edit.values.shape, (r,)), (edit.v_f.shape[:1], (d,)), (edit.v_r.shape[:1], (d,)))
    if any(tuple(found) != expected for found, expected in wanted) or r > d or shape.width not in (0, d):
        return "shapes do not fit together"
    if tuple(edit.refill.shape) not in {(d, 0), (d, r)}:
        return "what is drawn instead does not fit"
    if not (edit.refill.double().norm(dim=0) <= LONGEST_REFILL).all():
        return "what is drawn instead is larger than any row"
    if shape.heads < 1 or d % shape.heads or shape.context < 1:
        return "heads do not fit its width"
    for part in ("v_f", "v_r"):
        v = getattr(edit, part).double()
        if v.shape[1] > d:
            return f"{part} has more directions than the layer has channels"
        if v.shape[1] and not ((v.T @ v - torch.eye(v.shape[1], dtype=v.dtype)).abs() <= ORTHONORMAL).all():
            return f"{part} is not orthonormal"
    return None


def structure_fault(edit: Edit, shape: SiteShape, structure: str) -> str | None:
    """What is wrong with the structure: an edit per head must not mix heads."""
    if structure != "per head" or not edit.rank:
        return None
    used = [(t.reshape(shape.heads, -1, edit.rank) != 0).any(1) for t in (edit.left, edit.m)]  # (heads, r)
    return "an edit per head mixes heads" if bool(((used[0] | used[1]).sum(0) > 1).any()) else None
