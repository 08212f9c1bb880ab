"""An edit as an ordinary LoRA: exact factors of W_edited - W, and the tensors of a LoRA file."""

from __future__ import annotations

import torch

from .errors import PureError
from .projection import Side

Tensor = torch.Tensor
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NUMERICAL_RANK = 1e-7  # singular values below this share of the largest are float32 rounding of the weights


def lora_factors(weight: Tensor, u: Tensor, m: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    """up (d_out, r), down (r, d_in) with W + up @ down = E W (left) or W E (right): this edit is a LoRA, exactly."""
    return (-u, m.T @ weight) if side == "left" else (-(weight @ u), m.T)


def dense_factors(delta: Tensor) -> tuple[Tensor, Tensor]:
    """up, down of a dense difference at its numerical rank, by its singular value decomposition."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    rank = int((s > NUMERICAL_RANK * s[:1]).sum()) if s.numel() and s[0] > 0 else 0
    return u[:, :rank] * s[:rank], vh[:rank]


def join_factors(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One pair whose product is the sum of the products; never of a higher rank than the weight has."""
    up, down = torch.cat([a for a, _ in pairs], 1), torch.cat([b for _, b in pairs], 0)
    return (up, down) if up.shape[1] <= min(up.shape[0], down.shape[1]) else dense_factors(up @ down)


def balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each direction's two halves of about equal size (powers of two.

    Exact), so that fp16 holds both.
    """
    ratio = down.norm(dim=1) / up.norm(dim=0).clamp(min=torch.finfo(up.dtype).tiny)
    scale = torch.exp2(torch.log2(ratio.clamp(min=2.0**-60, max=2.0**60)).div(2).round())
    return up * scale, down / scale[:, None]


def lora_tensors(name: str, up: Tensor, down: Tensor, dtype: str, kernel: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The three tensors of one weight in a LoRA file (kohya's layout); alpha = rank, so that strength 1 is the edit.

    kernel: the size of a convolution's window, whose down is (r, d_in x window). Raises PureError where the numbers do
    not fit the dtype.
    """
    up, down = (fitting(t, name, dtype) for t in balance(up, down))
    rank = up.shape[1]
    if kernel:
        up, down = up.reshape(*up.shape, *(1 for _ in kernel)), down.reshape(rank, -1, *kernel)
    alpha = torch.tensor(float(rank), dtype=torch.float32)
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": alpha}


def plain_tensor(name: str, change: Tensor, dtype: str, bias: bool) -> dict[str, Tensor]:
    """The tensor of a parameter of one dimension: its whole change, which is no larger than factors of it would be."""
    return {f"{name}.{'diff_b' if bias else 'diff'}": fitting(change, name, dtype)}


def fitting(tensor: Tensor, name: str, dtype: str) -> Tensor:
    """The tensor in a dtype; raises PureError where its numbers do not fit."""
    stored = tensor.to(DTYPES[dtype]).contiguous()
    if not torch.isfinite(stored).all():
        raise PureError(f"{name} does not fit into {dtype}. Save the LoRA in bf16 or fp32.")
    return stored
