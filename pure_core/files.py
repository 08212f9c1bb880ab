"""The safetensors format of a basis. A file may be a stranger's: all of it is checked, nothing is trusted."""

from __future__ import annotations

import json
import math
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .activations import ModelIdentity, SiteShape
from .basis import MATRICES, TENSORS, ConceptBasis, Edit, Recipe, RuleName, Structure
from .errors import PureError
from .rules import RULES
from .whole_file import new_file

FORMAT, VERSION = "pure-basis", 2
ORTHONORMAL = 1e-5
# A basis of SDXL with a thousand prompts has a header of .2 MB, 70 sites and names of 60 characters.
MOST_HEADER, MOST_SITES, MOST_TEXT, MOST_ITEMS = 4 * 2**20, 2048, 4096, 20_000


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
    }
    with new_file(target) as file:
        save_file(tensors, file.part, metadata={"pure": json.dumps(head)})
    return file.path


def load_basis(source: Path, step: Callable[[], None] = lambda: None) -> ConceptBasis:
    """Reads a basis and checks all of it; `step` is called after each site. PureError on a file that is not one."""
    source = Path(source)
    try:
        check_file(source)
        with safe_open(source, framework="pt") as file:
            head = read_head((file.metadata() or {})["pure"], source.name)
            shapes = {str(name): typed(SiteShape, shape) for name, shape in head["sites"].items()}
            if not 0 < len(shapes) <= MOST_SITES:
                raise ValueError(f"{len(shapes)} sites")
            rule = typed(RuleName, head["rule"])
            structure = typed(Structure, head["structure"])
            model, recipe = typed(ModelIdentity, head["model"]), head.get("recipe")
            recipe = None if recipe is None else typed(Recipe, recipe)
            if {f"{name}.{part}" for name in shapes for part in TENSORS} != set(file.keys()):
                raise PureError(f"{source.name} does not hold the layers that it lists: it is damaged. Save it again.")
            sites = {}
            for name, shape in list(shapes.items()):
                edit = Edit(*(file.get_tensor(f"{name}.{part}") for part in TENSORS))
                edit = upgrade_edit(edit, rule) if head["version"] == 1 else edit
                fault = edit_fault(edit, shape) or structure_fault(edit, shape, structure) or RULES[rule].fault(edit)
                if fault:
                    raise PureError(f"{source.name} is damaged: in layer {name} {fault}. Save the basis again.")
                sites[name], shapes[name] = edit, replace(shape, width=edit.u.shape[0])
                step()
            return ConceptBasis(sites, shapes, rule, structure, model, recipe)
    except FileNotFoundError:
        raise PureError(f"There is no file {source.name}. Choose one from the list.") from None
    except PureError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
        raise PureError(
            f"{source.name} is not a PURE basis, or it is damaged ({type(error).__name__}). Save the basis again."
        ) from None


def check_file(source: Path) -> None:
    """Before anything parses it: raises unless this is a regular file with a header no larger than a basis can have."""
    if not stat.S_ISREG(source.stat().st_mode):
        raise PureError(f"{source.name} is no file. Choose another one from the list.")
    with open(source, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
    if size > MOST_HEADER:
        raise ValueError("header")


def read_head(text: str, name: str) -> dict[str, Any]:
    """The JSON head of a basis file, of the newest version; raises PureError on another format or a newer version."""
    head = json.loads(text)
    if head["format"] != FORMAT or head["version"] not in (1, VERSION) or isinstance(head["version"], bool):
        raise PureError(
            f"{short(name)} has the format {short(repr(head['format']))}, version {short(repr(head['version']))}. This "
            f"pack reads {FORMAT} up to version {VERSION}: update the pack, or save the basis again."
        )
    return upgrade_head(head) if head["version"] == 1 else head


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
        capture |= {k: came["forget"].get(k, came.get(k, default)) for k, default in (("seed", 0), ("latents", 1))}
        anchors = {r: {k: came[r].get(k, []) for k in ("concepts", "prompts")} for r in ("forget", "retain")}
        rule = {"rule": head["rule"], "structure": head["structure"]}
        new["recipe"] = {"settings": {**settings, **rule}, "capture": capture, **anchors}
    return new


def upgrade_edit(edit: Edit, rule: str) -> Edit:
    """An edit of a file of version 1, where the contrast rule's M did not have unit columns."""
    if rule != "contrast" or not edit.rank:
        return edit
    length = edit.m.double().norm(dim=0)
    u, m = (edit.u.double() * length).float(), (edit.m.double() / length).float()
    return Edit(u, m, *(getattr(edit, f.name) for f in fields(Edit)[2:]))


def typed(kind: Any, value: Any) -> Any:
    """The value as this type, from JSON; raises ValueError unless it is just that.

    Types: int, float, str, Literal, tuple[X, ...] and frozen dataclasses of them. Numbers are finite, text and lists
    bounded; fields of a dataclass that have a default may be missing, and others than its own are not allowed.
    """
    if is_dataclass(kind):
        if not isinstance(value, Mapping) or set(value) - {f.name for f in fields(kind)}:
            raise ValueError("fields")
        hints = get_type_hints(kind)
        return kind(**{name: typed(hints[name], part) for name, part in value.items()})  # type: ignore[operator]
    origin = get_origin(kind)
    if origin is Literal:
        if not any(value == offered and type(value) is type(offered) for offered in get_args(kind)):
            raise ValueError("choice")
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) > MOST_ITEMS:
            raise ValueError("list")
        return tuple(typed(get_args(kind)[0], part) for part in value)
    if kind is str:
        if not isinstance(value, str) or len(value) > MOST_TEXT:
            raise ValueError("text")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or not math.isfinite(value):
        raise ValueError("number")
    return value


def short(text: str, most: int = 60) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


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
    used = [(t.view(shape.heads, -1, edit.rank) != 0).any(1) for t in (edit.u, edit.m)]  # (heads, r)
    return "an edit per head mixes heads" if bool(((used[0] | used[1]).sum(0) > 1).any()) else None
