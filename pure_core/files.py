"""The safetensors format of a basis, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import PureError
from .projection import RULES, ConceptBasis, LayerBasis, paper_factors
from .subspace import removed_share

FORMAT, VERSION = "pure-basis", 1
TENSORS = ("u", "m", "v_f", "v_r", "spectrum_forget", "spectrum_retain", "values")
OF_THE_MODEL = ("context_width", "fingerprint")  # what is always said of the weights that a basis was captured on
MATRICES = ("u", "m", "v_f", "v_r")
ORTHONORMAL = 1e-5


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A path beside the target to write to; it becomes the target when the block ends well, and is removed otherwise.

    Its name ends in .part, which no loader lists. The content is flushed to the disk before the rename. Raises
    PureError where the file cannot be written: a full disk, a read-only folder.
    """
    target = Path(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except (OSError, SafetensorError) as error:
        raise PureError(
            f"{target.name} could not be written ({error}): make room or choose another folder and run again; "
            "nothing is left of it."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def recipe_of(basis: ConceptBasis) -> dict[str, Any]:
    """Everything needed to repeat the capture and the build: it names what was erased."""
    return {"settings": basis.settings, "provenance": basis.provenance}


def save_basis(basis: ConceptBasis, target: Path, embed_recipe: bool = True) -> None:
    """Writes a basis; without the recipe its settings, concepts and prompts are left out, but not which weights it is
    of."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "rule": basis.rule,
        "structure": basis.structure,
        "heads": {n: b.heads for n, b in basis.layers.items()},
        **{k: basis.provenance.get(k) for k in OF_THE_MODEL},
    }
    if embed_recipe:
        head.update(recipe_of(basis))
    tensors = {
        f"{name}.{field}": getattr(b, field).contiguous().clone()
        for name, b in basis.layers.items()
        for field in TENSORS
    }
    with atomic_path(target) as part:
        save_file(tensors, part, metadata={"pure": json.dumps(head)})


def load_basis(source: Path) -> ConceptBasis:
    """Reads a basis and checks all of it before anything is used; raises PureError on a file that is not one."""
    name = Path(source).name
    try:
        with safe_open(source, framework="pt") as file:
            head = json.loads((file.metadata() or {})["pure"])
            if head["format"] != FORMAT or head["version"] != VERSION or head["rule"] not in RULES:
                raise PureError(
                    f"{name} is a basis of format {head['format']!r}, version {head['version']!r}, rule "
                    f"{head['rule']!r}, and this pack reads {FORMAT} version {VERSION}: update the pack or save "
                    "the basis again."
                )
            wanted = {f"{layer}.{field}" for layer in head["heads"] for field in TENSORS}
            if not wanted or wanted != set(file.keys()):
                raise PureError(f"{name} does not hold the layers that it lists: it is damaged; save the basis again.")
            tensors = {key: file.get_tensor(key) for key in sorted(wanted)}
            layers = {
                layer: LayerBasis(int(heads), *(tensors[f"{layer}.{field}"] for field in TENSORS))
                for layer, heads in head["heads"].items()
            }
            provenance = {**{k: head[k] for k in OF_THE_MODEL if head.get(k)}, **dict(head.get("provenance", {}))}
            basis = ConceptBasis(
                layers, str(head["rule"]), str(head["structure"]), dict(head.get("settings", {})), provenance
            )
    except FileNotFoundError:
        raise PureError(f"There is no file {name}: choose one that is in the list.") from None
    except PureError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
        raise PureError(
            f"{name} is not a PURE basis, or it is damaged ({type(error).__name__}): save the basis again."
        ) from None
    for layer, b in basis.layers.items():
        fault = layer_fault(b) or factor_fault(b, basis.rule)
        if fault:
            raise PureError(f"{name} is damaged: in layer {layer} {fault}; save the basis again.")
    return basis


def layer_fault(b: LayerBasis) -> str | None:
    """What is wrong with a layer that was read from a file; None where nothing is."""
    for field in TENSORS:
        tensor, dims = getattr(b, field), 2 if field in MATRICES else 1
        if tensor.dtype != torch.float32 or tensor.dim() != dims:
            return f"{field} is {tensor.dtype} with {tensor.dim()} dimensions, not float32 with {dims}"
        if not torch.isfinite(tensor).all():
            return f"{field} is not finite"
    d, r = b.u.shape
    if (
        b.m.shape != (d, r)
        or b.values.shape != (r,)
        or b.v_f.shape[0] != d
        or b.v_r.shape[0] != d
        or r > d
        or b.heads < 1
        or d % b.heads
    ):
        return "shapes do not fit together"
    for field in ("v_f", "v_r"):
        v = getattr(b, field).double()
        if v.shape[1] > d or (
            v.shape[1] and (v.T @ v - torch.eye(v.shape[1], dtype=v.dtype)).abs().max() > ORTHONORMAL
        ):
            return f"{field} is not orthonormal"
    return None


def factor_fault(b: LayerBasis, rule: str) -> str | None:
    """What is wrong with the edit itself: by the energy rule U, M follow from V_F, V_R; by the contrast rule M^T U =
    diag(f).

    There f = ratio / (ratio + weight) with one weight, which the direction of the lowest ratio tells (a file need not
    say it).
    """
    u, m, values = b.u.double(), b.m.double(), b.values.double()
    if rule == "energy":
        wanted = paper_factors(b.v_f.double(), b.v_r.double())
        wrong = u.shape != wanted[0].shape or (
            u.numel() > 0 and float(max((u - wanted[0]).abs().max(), (m - wanted[1]).abs().max())) > ORTHONORMAL
        )
    elif not b.rank:
        wrong = False
    else:
        product, i = m.T @ u, int(values.argmin())
        weight = float(values[i] * (1 / product[i, i] - 1))
        scale = torch.outer(m.norm(dim=0), u.norm(dim=0)).clamp(min=1)
        wrong = not (0 < product[i, i] < 1 + ORTHONORMAL) or bool(
            ((product - torch.diag(removed_share(values, weight))).abs() > ORTHONORMAL * scale).any()
        )
    return "the edit does not follow from its bases" if wrong else None
