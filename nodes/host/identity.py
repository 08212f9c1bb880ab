"""Digests of what makes a MODEL's rows what they are, so that captures of different MODELs are never mixed."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import torch

from ...pure_core.activations import ModelIdentity
from .sites import PROJECTIONS, ROOT, AttentionSite, family_name
from .weights import base_weight, effective_weight, float_weight, is_quantised

SAMPLED = 256  # numbers of a tensor that a digest looks at
PER_SITE = 32  # projections of a site's values by which distances of MODELs are estimated
DEEPEST, MOST = 6, 20_000  # levels of containers, closures and objects that a digest goes into, and how many of them
UNINITIALISED = "text_projection"  # checkpoints of SD 1 have none, and newer hosts then leave what was in memory
OPAQUE = (torch.nn.Module, comfy.model_patcher.ModelPatcher)  # they hold what changes as a MODEL is loaded
SAMPLING_NUMBERS = ("sigma_data", "shift", "multiplier", "sigma_min", "sigma_max")


class Digest:
    """Sixteen hex digits of values of any kind: equal for equal values, whatever objects hold them."""

    def __init__(self) -> None:
        self._hash, self._left = hashlib.sha256(), MOST

    def __str__(self) -> str:
        return self._hash.hexdigest()[:16]

    def text(self, value: str) -> None:
        self._hash.update(value.encode("utf-8", "surrogatepass") + b"\0")

    def add(self, value: Any, depth: int = 0) -> None:
        """A sample of a tensor; all of a number or text; of containers, functions and objects what is inside."""
        self._left -= 1
        if torch.is_tensor(value):
            flat = value.detach().flatten()
            self.text(repr(tuple(value.shape)))
            sample = flat[:: max(1, flat.numel() // SAMPLED)].to("cpu", torch.float32).contiguous()
            self._hash.update(sample.numpy().tobytes())
        elif isinstance(value, (str, bytes, int, float, bool, type(None), torch.dtype)):
            self.text(repr(value))
        elif isinstance(value, type):
            self.text(value.__qualname__)
        elif depth >= DEEPEST or self._left < 0 or isinstance(value, OPAQUE):
            self.text(type(value).__qualname__)
        elif isinstance(value, dict):
            self.text(f"{{{len(value)}")
            for key in sorted(value, key=repr):
                self.add(key, depth + 1)
                self.add(value[key], depth + 1)
        elif isinstance(value, (list, tuple)):
            self.text(f"[{len(value)}")
            for part in value:
                self.add(part, depth + 1)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__, depth)
            self.add(value.__self__, depth + 1)
        elif isinstance(value, types.FunctionType):
            self.text(f"{value.__module__}.{value.__qualname__}")
            for cell in value.__closure__ or ():
                self.add(_content(cell), depth + 1)
            self.add([value.__defaults__, value.__kwdefaults__], depth + 1)
        else:
            self.text(type(value).__qualname__)
            self.add(vars(value) if hasattr(value, "__dict__") else None, depth + 1)


def _content(cell: Any) -> Any:
    """What a closure holds; nothing where it is still empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def weights_digest(model: Any, sites: list[AttentionSite]) -> str:
    """Of a sample of the sites' own weights and of what is patched onto them: another fine-tune differs.

    The weights come from the patcher and not from the module, which holds another clone's patched ones while that is
    loaded.
    """
    digest = Digest()
    for key in site_keys(sites):
        digest.add(_values(model, key))
        digest.add(_entries(model, key))
    return str(digest)


def weights_sketch(model: Any, sites: list[AttentionSite]) -> tuple[float, ...]:
    """PER_SITE random projections a^T W b of every site's value weight W as the MODEL samples with it, to six digits.

    a and b are vectors of signs, the same for every MODEL, so that the mean square of the difference of two MODELs'
    projections estimates |W_1 - W_2|^2 (Frobenius), and that of one's own |W|^2.
    """
    out: list[float] = []
    for site in sites:
        slab = site.weights["values"][0]
        weight = effective_weight(model, slab.key)
        part = weight.narrow(*slab.offset) if slab.offset else weight
        rows = part.flatten(1)
        a, b = (signs(size) for size in rows.shape)
        out += [float(f"{v:.6g}") for v in ((a @ rows) * b).sum(1).tolist()]
    return tuple(out)


@functools.lru_cache(maxsize=64)
def signs(size: int) -> torch.Tensor:
    """(PER_SITE, size) float32 of 1 and -1, always the same."""
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 2, (PER_SITE, size), generator=generator).float() * 2 - 1


def weights_identity(model: Any, sites: list[AttentionSite]) -> ModelIdentity:
    """Which attention weights a MODEL has; the rest of its identity is left open."""
    return ModelIdentity(family_name(model), weights_digest(model, sites), sketch=weights_sketch(model, sites))


def site_keys(sites: Iterable[AttentionSite]) -> list[str]:
    """Every parameter that an edit of any projection could touch, each once."""
    return list(dict.fromkeys(slab.key for site in sites for p in PROJECTIONS for slab in site.weights.get(p, ())))


def _values(patcher: Any, key: str) -> torch.Tensor:
    """A base weight as numbers that can be looked at: a quantised one dequantised."""
    weight = base_weight(patcher, key)
    return float_weight(patcher, key) if is_quantised(weight) else weight


def _entries(model: Any, key: str) -> list[Any]:
    """Of each patch on a weight: strength, patch, strength of what is below; of an adapter what is in it."""
    return [
        [strength, getattr(patch, "weights", patch), below] for strength, patch, below, *_ in model.patches.get(key, ())
    ]


def patches_digest(model: Any, sites: list[AttentionSite]) -> str:
    """Of what is patched onto every other weight."""
    digest, own = Digest(), set(site_keys(sites))
    for key in sorted(key for key in model.patches if key.startswith(ROOT) and key not in own):
        digest.text(key)
        digest.add(_entries(model, key))
    return str(digest)


def sampling_state(sampling: Any) -> list[Any]:
    """What a model_sampling object does: the classes that it is made of, its noise levels and numbers."""
    classes = [c.__name__ for c in type(sampling).__mro__[1:] if c not in (torch.nn.Module, object)]
    numbers = []
    for name in SAMPLING_NUMBERS:
        value = getattr(sampling, name, None)
        numbers.append(None if value is None else round(float(value), 6))
    return [classes, getattr(sampling, "sigmas", None), numbers]


def attention_digest(model: Any) -> str:
    """Of what other nodes put into the MODEL's options or in place of its parts, but for its model_sampling."""
    digest = Digest()
    digest.add({k: v for k, v in model.model_options.items() if k != "transformer_options"})
    digest.add(model.model_options.get("transformer_options", {}))
    digest.add({k: v for k, v in model.object_patches.items() if k != "model_sampling"})
    return str(digest)


def clip_digest(clip: Any) -> str:
    """Of the text encoder's weights (a sample of some), what is patched onto it, and its options."""
    digest, patcher = Digest(), getattr(clip, "patcher", None)
    if patcher is None:  # another pack's own kind of CLIP
        return ""
    keys = sorted(k for k in patcher.model.state_dict() if k.endswith("weight") and UNINITIALISED not in k)
    for key in keys[:: max(1, len(keys) // 32)]:
        digest.add(_values(patcher, key))
    for key in sorted(patcher.patches):
        digest.text(key)
        digest.add(_entries(patcher, key))
    digest.add([getattr(clip, "layer_idx", None), getattr(clip, "tokenizer_options", None)])
    return str(digest)


def identify(model: Any, clip: Any, sites: list[AttentionSite]) -> ModelIdentity:
    """The identity of a MODEL and its CLIP as they are now: before anything is sampled."""
    sampling = Digest()
    sampling.add(sampling_state(model.get_model_object("model_sampling")))
    return replace(
        weights_identity(model, sites),
        patches=patches_digest(model, sites),
        sampling=str(sampling),
        attention=attention_digest(model),
        clip=clip_digest(clip),
    )
