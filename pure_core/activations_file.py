"""The safetensors format of a capture: exact moments, so that what several machines captured can be merged.

A file may be a stranger's: all of it is checked, nothing is trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .activations import Activations, Anchors, CaptureSettings, ModelIdentity, Role, SiteShape
from .checked_file import MOST_SITES, check_file, read_head, reading, typed
from .errors import PureError
from .moments import Moments
from .whole_file import new_file

Tensor = torch.Tensor
FORMAT, VERSION = "pure-activations", 1
PARTS = ("ones", "factor", "sums")
MOST_BYTES = 8 * 2**30  # 60 sites of width 3,072 with as many rows as they can keep have 4.5 GB
CONSISTENT = 1e-9  # relative; float64 sums of a few thousand rows agree to 1e-12


def unnamed(capture: Activations) -> Activations:
    """The capture without its words: all its concepts as one that says so, and no prompts."""
    words = f"what a file does not name ({'to forget' if capture.role == 'forget' else 'to keep'})"
    return Activations(
        capture.role,
        capture.moments,
        {name: total.sum(0, keepdim=True) for name, total in capture.sums.items()},
        (sum(capture.rows),),
        capture.shapes,
        Anchors((words,), ()),
        capture.settings,
        capture.model,
    )


def save_activations(capture: Activations, target: Path, embed_recipe: bool = True) -> Path:
    """Writes a capture to a new file, exactly, and returns where it is; without the recipe its words are left out."""
    capture = capture if embed_recipe else unnamed(capture)
    tensors = {}
    for name, moments in capture.moments.items():
        for part, tensor in zip(PARTS, (moments.ones, moments.factor, capture.sums[name]), strict=True):
            tensors[f"{name}.{part}"] = shortest(tensor)
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "content": digest(tensors),
        "role": capture.role,
        "rows": list(capture.rows),
        "sites": {name: asdict(shape) for name, shape in capture.shapes.items()},
        "anchors": asdict(capture.anchors),
        "settings": asdict(capture.settings),
        "model": asdict(capture.model),
    }
    with new_file(target) as file:
        save_file(tensors, file.part, metadata={"pure": json.dumps(head)})
    return file.path


def shortest(tensor: Tensor) -> Tensor:
    """The same numbers in float32 where that holds them exactly, as it does rows before they are compacted."""
    short = tensor.float()
    return (short if torch.equal(short.double(), tensor) else tensor).contiguous().clone()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the numbers of all tensors, in the order of their names: files travel, and must arrive whole."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def load_activations(source: Path, step: Callable[[], None] = lambda: None) -> Activations:
    """Reads a capture and checks all of it; `step` is called after each site. PureError on a file that is not one."""
    source = Path(source)
    with reading(source, "a file of PURE activations", "Save the capture again"):
        check_file(source, MOST_BYTES)
        with safe_open(source, framework="pt") as file:
            head = read_head((file.metadata() or {})["pure"], source.name, FORMAT, (VERSION,))
            shapes = {str(name): typed(SiteShape, shape) for name, shape in head["sites"].items()}
            if not 0 < len(shapes) <= MOST_SITES:
                raise ValueError(f"{len(shapes)} sites")
            role: Role = typed(Role, head["role"])
            rows, anchors = typed(tuple[int, ...], head["rows"]), typed(Anchors, head["anchors"])
            settings, model = typed(CaptureSettings, head["settings"]), typed(ModelIdentity, head["model"])
            if {f"{name}.{part}" for name in shapes for part in PARTS} != set(file.keys()):
                raise PureError(f"{source.name} does not hold the layers that it lists: it is damaged. Save it again.")
            if len(rows) != len(anchors.concepts) or not rows or min(rows) < 1:
                raise ValueError("rows")
            moments, sums = {}, {}
            read: dict[str, Tensor] = {}
            for name, shape in shapes.items():
                for part in PARTS:  # before anything of it is read
                    refuse_shape(part, file.get_slice(f"{name}.{part}").get_shape(), shape, rows)
                ones, factor, total = own = tuple(file.get_tensor(f"{name}.{part}") for part in PARTS)
                fault = moments_fault(ones, factor, total, rows)
                if fault:
                    raise PureError(f"{source.name} is damaged: in layer {name} {fault}. Save the capture again.")
                moments[name], sums[name] = Moments(sum(rows), ones.double(), factor.double()), total.double()
                read |= {f"{name}.{part}": tensor for part, tensor in zip(PARTS, own, strict=True)}
                step()
            if digest(read) != head["content"]:
                raise PureError(f"{source.name} is damaged: its numbers are not those that were saved. Save it again.")
            return Activations(role, moments, sums, rows, shapes, anchors, settings, model)


def refuse_shape(part: str, found: list[int], shape: SiteShape, rows: tuple[int, ...]) -> None:
    """Raises ValueError unless a tensor with this shape can be this part of the moments of so many rows."""
    kept = min(sum(rows), shape.width + 1)
    most = {"ones": [kept], "factor": [kept, shape.width], "sums": [len(rows), shape.width]}[part]
    fits = len(found) == len(most) and found[0] <= most[0] and found[1:] == most[1:]
    if not fits or shape.width < 1 or shape.heads < 1 or shape.width % shape.heads or shape.context < 1:
        raise ValueError(part)


def moments_fault(ones: Tensor, factor: Tensor, sums: Tensor, rows: tuple[int, ...]) -> str | None:
    """What is wrong with moments from a file; None where ones^T ones is the number of rows and ones^T factor the sum of
    the concepts' sums."""
    if any(t.dtype not in (torch.float32, torch.float64) for t in (ones, factor, sums)):
        return "numbers are not float32 or float64"
    if not all(bool(torch.isfinite(t).all()) for t in (ones, factor, sums)):
        return "a number is not finite"
    if len(ones) != len(factor) or len(sums) != len(rows):
        return "shapes do not fit together"
    ones, factor, sums = ones.double(), factor.double(), sums.double()
    count = float(sum(rows))
    if not abs(float(ones @ ones) - count) <= CONSISTENT * count:
        return "the number of rows is not what its moments say"
    scale = float(factor.square().sum().sqrt()) * count**0.5  # |sum of h| is at most this
    if not bool(((ones @ factor - sums.sum(0)).abs() <= CONSISTENT * max(scale, 1e-300)).all()):
        return "the sums are not what its moments say"
    return None
