"""Reading single weights of a MODEL as the host has them, without asking it for all of them."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.model_patcher
import torch


def base_weight(patcher: Any, key: str) -> torch.Tensor:
    """A parameter as it was loaded, without patches: from the backup while a patched one is in its place."""
    weight: torch.Tensor = comfy.model_patcher.get_key_weight(patcher.model, key)[0]
    backup, hooked = patcher.backup.get(key), patcher.hook_backup.get(key)
    if backup is not None:
        weight = backup.weight
    if hooked is not None:
        weight = hooked[0]
    return weight


def is_quantised(weight: torch.Tensor) -> bool:
    """Whether it is the host's QuantizedTensor: codes and their scales, which says of itself that it is a float."""
    return hasattr(weight, "_qdata")


def stored_dtype(weight: torch.Tensor) -> torch.dtype:
    """What a weight is kept in: of a quantised one its codes' dtype."""
    codes: Any = weight
    dtype: torch.dtype = codes._qdata.dtype if is_quantised(weight) else weight.dtype
    return dtype


def float_weight(patcher: Any, key: str) -> torch.Tensor:
    """The same as a float32 copy on the CPU, scaled or dequantised by the layer's own rule."""
    convert, weight = comfy.model_patcher.get_key_weight(patcher.model, key)[2], base_weight(patcher, key)
    if is_quantised(weight):  # by itself: `to` would change it in place in some hosts, or do nothing
        return weight.dequantize().to("cpu", torch.float32, copy=True)
    weight = weight.to("cpu", torch.float32, copy=True)
    if convert is not None:
        weight = convert(weight, inplace=True)
    return weight


def effective_weight(patcher: Any, key: str, count: int | None = None) -> torch.Tensor:
    """float32 copy on the CPU of a weight as the MODEL samples with it: its base and the patches on it, in order.

    count: only the first so many patches.
    """
    patches = patcher.patches.get(key, [])[:count]
    weight: torch.Tensor = comfy.lora.calculate_weight(patches, float_weight(patcher, key), key)
    return weight
