"""A MODEL's attention sites: where picture tokens attend to text.

Found by structure; and what cannot be edited, refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ...pure_core.activations import SiteShape
from ...pure_core.errors import PureError
from ...pure_core.kinds import Layout
from .families import FAMILIES, SHARED_BLOCKS, UNET, WITHOUT_SITES, Family, Part, listed, supported

ROOT = "diffusion_model."  # prefix of the diffusion model's keys in a MODEL
WITHOUT_TEXT = ("Stable_Zero123", "Lotus")  # U-Nets of this layout that are fed a picture where others are fed text
Projection = Literal["keys", "values", "output"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


class NoSites(PureError):
    """The MODEL has no attention to text that could be edited."""


@dataclass(frozen=True)
class Slab:
    """Part of one parameter of a MODEL: its key, and the host's (dimension, start, length); None for all of it."""

    key: str
    offset: tuple[int, int, int] | None = None

    @property
    def patch_key(self) -> str | tuple[str, tuple[int, int, int]]:
        """How the host's add_patches names it."""
        return self.key if self.offset is None else (self.key, self.offset)


@dataclass(frozen=True)
class AttentionSite:
    """One place where picture tokens attend to text.

    name: the attention module's path in the diffusion model. width, heads: of its values. shares: how many of the
    attention's heads share one of the values' (1 but for grouped queries): what is rendered has as many parts of that
    width. context: width of the text
    tokens that enter it. depth: 0 the first of the MODEL's sites, 1 the last. weights: the slabs of each projection
    that can be edited, weights and biases. family: its row of the table. output, text: paths of the module that is fed
    h by the picture's tokens, and of the one that makes the text's values. summed: what enters the output is h and
    something else.
    """

    name: str
    width: int
    heads: int
    context: int
    depth: float
    weights: Mapping[Projection, tuple[Slab, ...]]
    family: Family
    output: str
    text: str
    summed: bool = False
    shares: int = 1

    @property
    def shape(self) -> SiteShape:
        return SiteShape(self.width, self.heads, self.context)

    def key(self, projection: Projection) -> str:
        """The MODEL's key of a projection's weight."""
        return self.weights[projection][0].key


def diffusion_model(model: Any) -> torch.nn.Module:
    """The module that all clones of a MODEL share: to be looked at, never changed."""
    module: torch.nn.Module = model.model.diffusion_model
    return module


def family_name(model: Any) -> str:
    """What the host calls the MODEL's kind."""
    return type(model.model).__name__


def attention_sites(model: Any) -> list[AttentionSite]:
    """Every attention site of a MODEL, in order; raises PureError, naming its kind, where it cannot be edited."""
    root, kind = diffusion_model(model), family_name(model)
    if kind in WITHOUT_TEXT:
        raise PureError(f"This MODEL ({kind}) is not asked in text, so there is no concept to name. {supported()}.")
    modules = dict(root.named_modules())
    if any(name.split(".")[-1] == "time_stack" for name in modules):
        raise PureError(f"This MODEL ({kind}) makes videos from pictures and is not asked in text. {supported()}.")
    for family in FAMILIES:
        names = [name for name, module in modules.items() if is_site(family, name, module)]
        if names:
            depths = [i / max(len(names) - 1, 1) for i in range(len(names))]
            return [site_of(family, name, modules[name], d, kind) for name, d in zip(names, depths, strict=True)]
    raise NoSites(refusal(kind, modules))


def check_experimental(model: Any, sites: list[AttentionSite], allowed: bool) -> None:
    """Raises PureError where an edit of the text's values is one of the picture's too, unless the user allows it."""
    if sites[0].family.shared and not allowed:
        raise PureError(
            f"This MODEL ({family_name(model)}) is built like {listed([sites[0].family])}: its text and picture share "
            "their attention weights, so more of a concept stays, and other pictures change more, than elsewhere. "
            "Turn on experimental to try it."
        )


def is_site(family: Family, name: str, module: torch.nn.Module) -> bool:
    """Whether a module is an attention site of this family: by its name and its parts."""
    if not family.pattern.fullmatch(name):
        return False
    parts = [part.module for part in (family.values, family.keys, family.output) if part]
    return all(submodule(module, path) is not None for path in parts) and attribute(module, family.heads) is not None


def submodule(module: torch.nn.Module, path: str) -> torch.nn.Module | None:
    """The submodule at a path; None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def attribute(module: Any, path: str) -> Any:
    """The attribute at a dotted path; None where there is none."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def site_of(family: Family, name: str, module: torch.nn.Module, depth: float, kind: str) -> AttentionSite:
    """The site of an attention module; raises PureError where its weights cannot be edited."""
    values, output = (weight_of(module, part) for part in (family.values, family.output))
    for part in (family.values, family.output, family.keys):
        if part:
            refuse_packed(weight_of(module, part), kind)
    heads, queries = heads_of(family, module)
    width, context = span_of(family.values, int(values.shape[0]), heads, queries)[1], int(values.shape[1])
    weights: dict[Projection, tuple[Slab, ...]] = {"values": slabs(name, module, family.values, heads, queries)}
    if family.keys and not family.normed:
        weights["keys"] = slabs(name, module, family.keys, heads, queries)
    summed = bool(family.beside) and submodule(module, family.beside) is not None
    if not family.joint and not summed:
        weights["output"] = (Slab(f"{ROOT}{name}.{family.output.module}.weight"),)
    if width % heads or queries % heads or int(output.shape[1]) != width * (queries // heads):
        raise PureError(
            f"This MODEL ({kind}) has an attention layer that PURE does not know: {name} has values of width {width} "
            f"on {heads} heads, and {int(output.shape[1])} channels of {queries} heads enter its output. "
            f"{supported()}."
        )
    paths = (f"{name}.{family.output.module}", f"{name}.{family.values.module}")
    return AttentionSite(name, width, heads, context, depth, weights, family, *paths, summed, queries // heads)


def heads_of(family: Family, module: torch.nn.Module) -> tuple[int, int]:
    """How many heads the values of an attention module have, and how many its queries."""
    queries = int(attribute(module, family.heads))
    return int(attribute(module, family.value_heads)) if family.value_heads else queries, queries


def span_of(part: Part, rows: int, heads: int, queries: int) -> tuple[int, int]:
    """Start and length of a part among the rows of its weight: all of them, or keys and values of as many heads."""
    sizes = (queries, heads, heads)[-part.of :]
    start, end = (rows * sum(sizes[:i]) // sum(sizes) for i in (part.index, part.index + 1))
    return start, end - start


def weight_of(module: torch.nn.Module, part: Part) -> Any:
    """The weight of a part of an attention module; None where it has none, as packed ones."""
    return getattr(module.get_submodule(part.module), "weight", None)


def slabs(name: str, module: torch.nn.Module, part: Part, heads: int, queries: int) -> tuple[Slab, ...]:
    """The slabs of one projection: weight, and bias where there is one."""
    owner, found = module.get_submodule(part.module), []
    for kind in ("weight", "bias"):
        parameter = getattr(owner, kind, None)
        if parameter is not None:
            offset = None if part.of == 1 else (0, *span_of(part, int(parameter.shape[0]), heads, queries))
            found.append(Slab(f"{ROOT}{name}.{part.module}.{kind}", offset))
    return tuple(found)


def refuse_packed(weight: torch.Tensor | None, kind: str) -> None:
    """GGUF, bitsandbytes, nunchaku and the like hold packed integers: a projection cannot be applied to them."""
    if weight is None or not weight.dtype.is_floating_point or hasattr(weight, "tensor_type") or weight.dim() != 2:
        if weight is None:
            form = "no weight at all"
        elif weight.dtype.is_floating_point:
            form = type(weight).__name__
        else:
            form = str(weight.dtype).removeprefix("torch.")
        raise PureError(
            f"The attention weights of this MODEL ({kind}) are packed ({form}), and PURE cannot edit them. Load an "
            "fp32, fp16, bf16 or fp8 checkpoint instead of a GGUF or nunchaku one."
        )


def refusal(kind: str, modules: Mapping[str, torch.nn.Module]) -> str:
    """Why a MODEL without sites cannot be edited, in words."""
    for pattern, (name, why) in WITHOUT_SITES.items():
        if any(re.fullmatch(pattern, module) for module in modules):
            return f"This MODEL ({kind}) is built like {name}: {why}. {supported()}."
    return f"This MODEL ({kind}) has no attention to text that PURE knows. {supported()}."


def shared_blocks(model: Any) -> int:
    """How many blocks of a MODEL text and picture tokens pass with the same weights; those are left alone."""
    names = (name for name, _ in diffusion_model(model).named_modules())
    return sum(bool(SHARED_BLOCKS.fullmatch(name)) for name in names)


def is_unet(sites: list[AttentionSite]) -> bool:
    """Whether these are a U-Net's."""
    return sites[0].family is UNET


def layout_of(sites: list[AttentionSite]) -> Layout:
    """How text enters, as far as settings depend on it."""
    return "one stream" if sites[0].family.shared else "U-Net" if is_unet(sites) else "transformer"


def refuse_replaced_attention(model: Any) -> None:
    """Refuses to record where another node has put its own cross-attention.

    The rows would not be this MODEL's alone.
    """
    options = model.model_options.get("transformer_options", {})
    replaced = options.get("patches_replace", {}).get("attn2") or options.get("patches", {}).get("attn2_patch")
    if replaced:
        raise PureError(
            "Another node has already replaced this MODEL's cross-attention (IPAdapter, NegPip or similar). Connect "
            "the MODEL from before that node, and put that node after PURE Apply Projection."
        )
