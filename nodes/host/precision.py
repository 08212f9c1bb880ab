"""What storage in half or eighth precision leaves of an edit: computed, not estimated."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.float
import comfy.model_patcher
import comfy.utils
import torch

from .layers import ROOT
from .patches import edits_of, effective_weight

MATTERS = 0.1  # of what an edit takes out of a weight; above it a warning


@dataclass(frozen=True)
class Residual:
    """Over the weights of the last edit: dtype they are kept in, mean and largest share of what was taken out that
    rounding puts back."""

    dtype: str
    mean: float
    largest: float


def kept_weight(model, key: str, weight: torch.Tensor, own: dict | None = None) -> torch.Tensor:
    """float32 values that the host keeps of a float32 weight when it loads the MODEL in its storage dtype (the same
    rounding, with the same seed)."""
    _, store, convert = comfy.model_patcher.get_key_weight(model.model, key)
    seed = getattr(comfy.utils, "string_to_seed", None) or comfy.model_patcher.string_to_seed  # it moved after 0.3.75
    seed = seed(key)
    if store is not None:  # scaled or quantised storage, by the layer's own rule
        return convert(store(weight.clone(), return_weight=True, seed=seed)).to(torch.float32)
    return comfy.float.stochastic_rounding(
        weight.clone(), (own or model.get_key_patches(key))[key][0][0].dtype, seed=seed
    ).to(torch.float32)


def residual(model) -> Residual | None:
    """|M^T (kept - exact)| / |M^T (before - exact)| of every weight of the MODEL's last edit (W M for outputs); None
    where float32 is kept.

    Rounding to nearest is at most u |W|, u half a unit in the last place (fp16 2^-11, bf16 2^-8, fp8 e4m3 2^-4, e5m2
    2^-3); the host rounds fp8 stochastically, at most 2 u |W|. So a residual is at most |M|_2 2 u |W|_F / |M^T (before
    - W)|_F (of weights that are not subnormal in the dtype), and typically sqrt(r / d) of that, since rounding errors
    have no direction.
    """
    shares, dtype, own = [], None, model.get_key_patches(ROOT)
    for key, positions in edits_of(model).items():
        stored = own[key][0][0].dtype
        if stored.itemsize >= 4:
            continue
        dtype = str(stored).removeprefix("torch.")
        entry = model.patches[key][positions[-1]]
        m, side = entry[1].weights[1], entry[1].weights[2]
        part = (lambda w, m=m: m.T @ w) if side == "left" else (lambda w, m=m: w @ m)
        before, exact = effective_weight(model, key, positions[-1], own), effective_weight(model, key, None, own)
        taken = part(before - exact).norm()
        if taken > 0:
            shares.append(float(part(kept_weight(model, key, exact, own) - exact).norm() / taken))
    return Residual(dtype, sum(shares) / len(shares), max(shares)) if shares else None


def describe_residual(found: Residual | None) -> tuple[str, list[str]]:
    """A sentence for the report, and a warning where rounding matters."""
    if found is None:
        return "", []
    text = (
        f"Kept in {found.dtype}, rounding puts back {found.mean:.2g} of what is taken out (at most "
        f"{found.largest:.2g} in one weight)."
    )
    if found.mean <= MATTERS:
        return text, []
    return text, [
        (
            f"This MODEL is kept in {found.dtype}: rounding puts back {found.mean:.0%} of what the edit takes out; "
            "load it in fp16 or bf16 for a cleaner erasure."
        )
    ]
