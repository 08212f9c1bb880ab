"""What storage in half or eighth precision leaves of an edit: computed, not estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.float
import comfy.model_patcher
import comfy.utils
import torch

from ...pure_core.errors import PureError
from .patches import edits_of
from .weights import base_weight, effective_weight, is_quantised, stored_dtype

MATTERS = 0.1  # of what an edit takes out of a weight; above it a warning


@dataclass(frozen=True)
class Residual:
    """Over the weights of the last edit: dtype they are kept in, mean and largest share of what was taken out that
    rounding puts back."""

    dtype: str
    mean: float
    largest: float


def kept_weight(model: Any, key: str, weight: torch.Tensor) -> torch.Tensor:
    """float32 values that the host keeps of a float32 weight when it loads the MODEL in its storage dtype.

    The same rounding, with the same seed.
    """
    _, store, convert = comfy.model_patcher.get_key_weight(model.model, key)
    to_seed = (
        getattr(comfy.utils, "string_to_seed", None) or comfy.model_patcher.string_to_seed
    )  # it moved after 0.3.75
    seed = to_seed(key)
    if store is not None:  # scaled or quantised storage, by the layer's own rule
        kept = store(weight.clone(), return_weight=True, seed=seed)
        kept = kept.dequantize() if is_quantised(kept) else convert(kept) if convert else kept
    else:
        kept = comfy.float.stochastic_rounding(weight.clone(), base_weight(model, key).dtype, seed=seed)
    rounded: torch.Tensor = kept.to(torch.float32)
    return rounded


def residual(model: Any) -> Residual | None:
    """|M^T (kept - exact)| / |M^T (before - exact)| of every weight of the MODEL's last edit (W M for outputs).

    None where float32 is kept. Rounding to nearest is at most u |W|, u half a unit in the last place (fp16 2^-11, bf16
    2^-8, fp8 e4m3 2^-4, e5m2 2^-3); the host rounds fp8 stochastically, at most 2 u |W|. So a residual is at most |M|_2
    2 u |W|_F / |M^T (before - W)|_F (of weights that are not subnormal in the dtype), and typically sqrt(r / d) of
    that, since rounding errors have no direction.
    """
    shares, dtype = [], ""
    for key, positions in edits_of(model).items():
        stored = stored_dtype(base_weight(model, key))
        if stored.itemsize >= 4:
            continue
        dtype = str(stored).removeprefix("torch.")
        offset, edit = model.patches[key][positions[-1]][3], model.patches[key][positions[-1]][1].carried
        before, exact = effective_weight(model, key, positions[-1]), effective_weight(model, key)
        kept = kept_weight(model, key, exact)
        if not bool(torch.isfinite(kept).all()):
            raise PureError(
                f"The edited weights do not fit into {dtype} with the scales of this checkpoint: they overflow. Load "
                "an fp16 or bf16 checkpoint of this MODEL, or one that was scaled to float8_e4m3fn."
            )
        rounding, taken = (slab(w, offset) for w in (kept - exact, before - exact))
        m = edit.m.to("cpu", torch.float32)
        rounding, taken = (m.T @ w if edit.side == "left" else w @ m for w in (rounding, taken))
        if taken.norm() > 0:
            shares.append(float(rounding.norm() / taken.norm()))
    return Residual(dtype, sum(shares) / len(shares), max(shares)) if shares else None


def slab(weight: torch.Tensor, offset: tuple[int, int, int] | None) -> torch.Tensor:
    """The part of a weight that a patch with this offset sees."""
    return weight if offset is None else weight.narrow(*offset)


def describe_residual(found: Residual | None) -> tuple[str, list[str]]:
    """A sentence for the report, and a warning where rounding matters."""
    if found is None:
        return "", []
    text = (
        f"Storing this MODEL in {found.dtype} undoes {found.mean:.2g} of the erasure (at most {found.largest:.2g} in "
        "one weight)."
    )
    if found.mean <= MATTERS:
        return text, []
    return text, [
        f"Storing this MODEL in {found.dtype} undoes {found.mean:.0%} of the erasure. Load it in fp16 or bf16 for a "
        "cleaner one."
    ]
