"""Which layers of a MODEL are cross-attention: names, weight keys, widths, heads.

And refusals of what cannot be edited.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from ...pure_core.errors import PureError

ROOT = "diffusion_model."  # prefix of the U-Net's keys in a MODEL
PROJECTIONS = {"keys": "to_k", "values": "to_v", "output": "to_out.0"}
SUPPORTED = "PURE edits U-Nets with text cross-attention: SD 1.x, SD 2.x, SDXL and their fine-tunes"
WITHOUT_TEXT = (
    "Stable_Zero123",
    "Lotus",
)  # U-Nets of this layout that are fed a picture or a constant where others are fed text
BLOCKS = {"input_blocks": "down", "middle_block": "middle", "output_blocks": "up"}


@dataclass(frozen=True)
class Layer:
    """One cross-attention layer: its module name in the U-Net, inner width d, head count and context width."""

    name: str
    width: int
    heads: int
    context: int

    def key(self, projection: str) -> str:
        """The MODEL's key of a weight: projection is keys, values or output."""
        return f"{ROOT}{self.name}.{PROJECTIONS[projection]}.weight"

    @property
    def place(self) -> str:
        """down, middle or up."""
        return BLOCKS.get(self.name.split(".")[0], "middle")


def unet_of(model) -> torch.nn.Module:
    """The U-Net module that all clones of a MODEL share: to be looked at, never changed."""
    return model.model.diffusion_model


def cross_attention_layers(model) -> list[Layer]:
    """Every `attn2` of a MODEL in order; raises PureError, naming the family, where there is none or it cannot be
    edited."""
    family, unet, layers = type(model.model).__name__, unet_of(model), []
    if not all(hasattr(unet, block) for block in BLOCKS):
        raise PureError(
            f"This MODEL ({family}) is no U-Net: its text goes other ways than cross-attention keys and values "
            f"of its own. {SUPPORTED}."
        )
    if family in WITHOUT_TEXT:
        raise PureError(f"This MODEL ({family}) is not asked in text, so there is no concept to name. {SUPPORTED}.")
    for name, module in unet.named_modules():
        if name.split(".")[-1] == "time_stack":
            raise PureError(f"This MODEL ({family}) makes videos from pictures and is not asked in text. {SUPPORTED}.")
        if name.split(".")[-1] != "attn2" or not all(
            hasattr(module, part) for part in ("to_q", "to_k", "to_v", "to_out", "heads")
        ):
            continue
        weights = {
            projection: getattr(module.get_submodule(path), "weight", None) for projection, path in PROJECTIONS.items()
        }
        for weight in weights.values():
            _refuse_quantised(weight, family)
        (width, context), (value_width, _) = weights["keys"].shape, weights["values"].shape
        if value_width != width or width % module.heads:
            raise PureError(
                f"{family}: layer {name} has keys of width {width} and values of width {value_width} on "
                f"{module.heads} heads, which is not known here. {SUPPORTED}."
            )
        layers.append(Layer(name, int(width), int(module.heads), int(context)))
    if not layers:
        raise PureError(
            f"This MODEL ({family}) has no text cross-attention of its own (`attn2`), so there is nothing to "
            f"project. {SUPPORTED}."
        )
    return layers


def _refuse_quantised(weight: torch.Tensor | None, family: str) -> None:
    """GGUF, bitsandbytes, nunchaku and the like hold packed integers: a projection cannot be applied to them."""
    if weight is None or not weight.dtype.is_floating_point or hasattr(weight, "tensor_type") or weight.dim() != 2:
        kind = (
            "no weight at all"
            if weight is None
            else type(weight).__name__
            if weight.dtype.is_floating_point
            else str(weight.dtype).removeprefix("torch.")
        )
        raise PureError(
            f"The cross-attention weights of this MODEL ({family}) are quantised ({kind}): load an fp32, fp16, "
            "bf16 or fp8 checkpoint instead of a GGUF or nunchaku one."
        )


def refuse_replaced_attention(model) -> None:
    """Refuses to record where another node has put its own cross-attention.

    The rows would not be this MODEL's alone.
    """
    options = model.model_options.get("transformer_options", {})
    replaced = options.get("patches_replace", {}).get("attn2") or options.get("patches", {}).get("attn2_patch")
    if replaced:
        raise PureError(
            "Another node has already replaced this MODEL's cross-attention (IPAdapter, NegPip or similar): "
            "connect the MODEL from before that node, and put that node after PURE Apply Projection."
        )


def fingerprint(model, layers: list[Layer]) -> str:
    """16 hex digits of a sample of the MODEL's own cross-attention weights and of what is patched onto them: another
    fine-tune differs.

    The weights come from the patcher and not from the module, which holds another clone's patched ones while that is
    loaded.
    """
    digest, own = hashlib.sha256(), model.get_key_patches(ROOT)
    for layer in layers:
        for projection in PROJECTIONS:
            key = layer.key(projection)
            _add_to(digest, own[key][0][0])
            _add_to(
                digest, [entry[:3] for entry in model.patches.get(key, ())]
            )  # strength, patch, strength of what is below
    return digest.hexdigest()[:16]


def _add_to(digest, value) -> None:
    """A sample of a tensor; all of a number or text; of a container, an adapter or a merge what is inside."""
    if torch.is_tensor(value):
        flat = value.detach().flatten()
        digest.update(repr(tuple(value.shape)).encode())
        digest.update(flat[:: max(1, flat.numel() // 256)].to("cpu", torch.float32).contiguous().numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _add_to(digest, part)
    elif hasattr(value, "weights"):
        _add_to(digest, value.weights)
    else:
        digest.update((repr(value) if isinstance(value, (int, float, str)) else type(value).__name__).encode())
