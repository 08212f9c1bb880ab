"""Checkpoints that are whole and verified: written by the host's saver, read back, compared with the MODEL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.model_sampling
import comfy.sd
import torch
from safetensors import safe_open

from ...pure_core.errors import PureError
from ...pure_core.whole_file import new_file
from .identity import Digest, sampling_state
from .labels import architecture
from .patches import edits_of, recipes_of
from .paths import check_room, embeds
from .precision import kept_weight
from .reporting import check_cancelled
from .sites import ROOT, diffusion_model
from .weights import base_weight, effective_weight, is_quantised

# Worst error of a stored weight, relative to the weight before the edit, that is still rounding: a few units in the
# last place of its type; and of float32 what a GPU's products may differ from a CPU's. Of eight bits it is what the
# host's own rounding of this weight leaves, and a little more.
STORED = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
ROUNDED = 1.5
SCALE = "scale_weight"  # under which older hosts keep the scale of a weight in eight bits
KIND = "comfy_quant"  # under which newer hosts say how a weight is quantised
# What the host's classes raise where a file is of a family that it knows, and of widths that it does not.
UNBUILT = (ArithmeticError, AssertionError, KeyError, RuntimeError, TypeError, ValueError)
COMPARED = 24  # unedited weights whose values are compared, evenly spread
# The node that sets again after loading what a file cannot say, by a class that its model_sampling is made of.
SAMPLING_NODES = {
    "ModelSamplingContinuousEDM": "ModelSamplingContinuousEDM",
    "ModelSamplingContinuousV": "ModelSamplingContinuousV",
    "ModelSamplingFlux": "ModelSamplingFlux",
    "StableCascadeSampling": "ModelSamplingStableCascade",
    "ModelSamplingDiscreteFlow": "ModelSamplingSD3",
    "ModelSamplingDiscrete": "ModelSamplingDiscrete",
}


@dataclass
class Saved:
    """A written checkpoint: where it is, the worst relative error of its edited weights (None without an edit), and
    what the file cannot say.
    """

    path: Path
    error: float | None
    warnings: list[str] = field(default_factory=list)


def save_checkpoint(
    model: Any, clip: Any, vae: Any, target: Path, embed_recipe: bool, step: Callable[[], None]
) -> Saved:
    """Writes a checkpoint through the host's saver, with the parts that are given, and verifies it before it gets its
    name.

    `step` is called after each stage. Raises PureError where the file cannot be written or does not hold the edit and
    all parts; then no file is left.
    """
    recipes = recipes_of(model)
    check_room(target, sum(part.model_size() for part in (model, *(part.patcher for part in (clip, vae) if part))))
    metadata = {**architecture(model), "modelspec.title": target.stem}
    if embeds(embed_recipe) and recipes:
        metadata["pure"] = json.dumps({"format": "pure-checkpoint", "version": 1, "edits": recipes})
    with new_file(target) as file:
        write_checkpoint(file.part, model, clip, vae, metadata)
        step()
        check_cancelled()
        error = verify_checkpoint(model, clip, vae, file.part)
        warnings = sampling_warnings(model, file.part)
        step()
    return Saved(file.path, error, warnings)


def write_checkpoint(path: Path, model: Any, clip: Any, vae: Any, metadata: dict[str, str]) -> None:
    """The host's own saver; raises PureError where it cannot write such a MODEL."""
    try:
        comfy.sd.save_checkpoint(str(path), model, clip, vae, metadata=metadata, extra_keys=sampling_marks(model))
    except (AttributeError, TypeError, KeyError, NotImplementedError) as error:
        raise PureError(
            f"This ComfyUI cannot save this MODEL as a checkpoint ({error}), as with mixed or quantised precision. "
            "Save the edit with PURE Save LoRA instead."
        ) from error


def sampling_marks(model: Any) -> dict[str, torch.Tensor]:
    """The keys by which the host's loader knows again how a MODEL samples: v-prediction, zero terminal SNR, EDM."""
    sampling, marks = model.get_model_object("model_sampling"), {}
    continuous = isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM)
    latents = model.model.latent_format
    if isinstance(sampling, comfy.model_sampling.EDM) and hasattr(latents, "latents_mean"):  # not Cosmos: always so
        return {f"edm_{what}": getattr(latents, f"latents_{what}").flatten().float() for what in ("mean", "std")}
    if not isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return {}
    if continuous:
        ends = ("sigma_max", "sigma_min")
        marks = {f"edm_vpred.{end}": torch.as_tensor(getattr(sampling, end)).float() for end in ends}
    marks["v_pred"] = torch.tensor([])
    if getattr(sampling, "zsnr", False) or float(sampling.sigma_max) > 1000:
        marks["ztsnr"] = torch.tensor([])
    return marks


def loaded_sampling(stored: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> Any:
    """The model_sampling of what the host's loader makes of a file; None where it makes nothing of it."""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(stored)
    config = comfy.model_detection.model_config_from_unet(stored, prefix, metadata=metadata)
    if config is None:
        return None
    config.set_inference_dtype(torch.float32, None)
    try:
        return config.get_model(stored, prefix, device=torch.device("meta")).model_sampling  # its weights take no room
    except UNBUILT:
        return None


def sampling_warnings(model: Any, path: Path) -> list[str]:
    """What the file cannot say of how the MODEL samples: a sentence that names the node to add after loading."""
    live = model.get_model_object("model_sampling")
    with safe_open(path, framework="pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (mapped, not read)
        again = loaded_sampling(stored, file.metadata())
    if again is None:
        return ["ComfyUI does not recognise the written file as a model of a kind it knows; look at it before use."]
    digests = [Digest(), Digest()]
    for digest, sampling in zip(digests, (live, again), strict=True):
        digest.add(sampling_state(sampling))
    if str(digests[0]) == str(digests[1]):
        return []
    classes = [c.__name__ for c in type(live).__mro__]
    node = next((node for name, node in SAMPLING_NODES.items() if name in classes), "the ModelSampling node of before")
    kind = {"V_PREDICTION": "v_prediction", "EPS": "eps", "LCM": "lcm", "X0": "x0", "CONST": "flow"}
    named = next((kind[name] for name in classes if name in kind), "as before")
    return [
        f"A checkpoint file cannot say how this MODEL samples ({named}): after loading it, add {node} with the "
        "settings that you used here."
    ]


def verify_checkpoint(model: Any, clip: Any, vae: Any, path: Path) -> float | None:
    """Worst relative error of the edited weights in a file; None without an edit.

    Raises PureError where an edited weight, one of a sample of the others, or a whole part is not the one given.
    """
    edited, config = edits_of(model), model.model.model_config
    inner = diffusion_model(model)
    own = [ROOT + name for name, _ in (*inner.named_parameters(), *inner.named_buffers())]
    stored_as = _names(config.process_unet_state_dict_for_saving, {key: key.removeprefix(ROOT) for key in own})
    expected = {"model": set(stored_as.values())}
    if clip is not None:
        expected["clip"] = set(config.process_clip_state_dict_for_saving(_empty(clip.patcher.model.state_dict())))
    if vae is not None:
        expected["vae"] = set(config.process_vae_state_dict_for_saving(_empty(vae.first_stage_model.state_dict())))
    worst = None
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for part, wanted in expected.items():
            lost = sorted(wanted - names)
            if len(lost) > len(wanted) // 2:  # the host itself leaves out single buffers, and nothing else
                raise PureError(
                    f"The written checkpoint holds no {part.upper()}: this ComfyUI left it out ({lost[0]} is "
                    "missing). No file was kept. Please report this with ComfyUI's version."
                )
        others = [key for key in own if key not in edited and stored_as[key] in names and can_be_read(model, key)]
        sample = others[:: max(1, len(others) // COMPARED)]
        for key in (*edited, *sample):
            error = stored_error(model, key, stored_as[key], file, names)
            if not error <= allowed(model, key, file.get_tensor(stored_as[key]).dtype):
                what = "the edit of" if key in edited else "the MODEL's"
                raise PureError(
                    f"The written checkpoint does not hold {what} {stored_as[key]} (relative error {error:.2g}): the "
                    "host did not save what it samples with. No file was kept; please report this with the MODEL's "
                    "name."
                )
            worst = max(worst or 0.0, error) if key in edited else worst
    return worst


def _names(process: Callable[[dict[str, Any]], dict[str, Any]], names: dict[str, str]) -> dict[str, str]:
    """key -> what the host's saver calls it, for keys given with the names that it is handed."""
    out = {}
    for key, name in names.items():
        (out[key],) = process({name: None})
    return out


def _empty(keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """A state dict of these keys whose tensors hold nothing."""
    return {key: torch.zeros(1, 1) for key in keys}


def stored_error(model: Any, key: str, name: str, file: Any, names: set[str]) -> float:
    """|stored - wanted| / |W before the edits| of a weight in a file: also where an edit takes all of it."""
    wanted = effective_weight(model, key)
    if is_quantised(base_weight(model, key)):
        return relative(model, key, as_loaded(model, key, name, file, names) - wanted)
    stored, scale = file.get_tensor(name).float(), name.removesuffix("weight") + SCALE
    if scale in names:
        stored = stored * file.get_tensor(scale).float()
    return relative(model, key, stored - wanted)


def can_be_read(model: Any, key: str) -> bool:
    """Whether a weight of a file can be read back here: of quantised ones, those of linear layers."""
    weight = base_weight(model, key)
    return not is_quantised(weight) or (weight.dim() == 2 and hasattr(_owner(model, key), "in_features"))


def _owner(model: Any, key: str) -> Any:
    """The layer that holds a weight."""
    return model.model.get_submodule(key.rpartition(".")[0])


def as_loaded(model: Any, key: str, name: str, file: Any, names: set[str]) -> torch.Tensor:
    """A quantised weight of a file in float32, read by a layer of the class that will read it.

    Raises PureError where the host's saver left out what tells how to read it.
    """
    layer, owner = name.removesuffix("weight"), _owner(model, key)
    stored = {n.removeprefix(layer): file.get_tensor(n) for n in names if n.startswith(layer)}
    if KIND not in stored:
        raise PureError(
            "This ComfyUI writes quantised weights without their scales, so no loader could read the checkpoint. Save "
            "the edit with PURE Save LoRA instead."
        )
    fresh = type(owner)(owner.in_features, owner.out_features, bias="bias" in stored, device=torch.device("cpu"))
    fresh.load_state_dict(stored, strict=False)
    weight: torch.Tensor = fresh.weight.dequantize().to(torch.float32)
    return weight


def relative(model: Any, key: str, difference: torch.Tensor) -> float:
    """The norm of a difference over that of the weight before the edits."""
    first = edits_of(model).get(key, [None])[0]
    size = effective_weight(model, key, first).norm()
    return float(difference.norm() / size) if size > 0 else float(difference.norm())


def allowed(model: Any, key: str, dtype: torch.dtype) -> float:
    """The largest error that is rounding: of the stored type, or of the type that the host computes patches in."""
    computed = getattr(comfy.model_management, "lora_compute_dtype", None)  # newer hosts: fp16 on NVIDIA
    of_host = STORED.get(computed(model.load_device), 0.0) if computed else 0.0
    if dtype.itemsize > 1:
        return max(STORED.get(dtype, 0.0), of_host)
    wanted = effective_weight(model, key)
    return max(ROUNDED * relative(model, key, kept_weight(model, key, wanted) - wanted), of_host)
