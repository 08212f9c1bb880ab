"""What saved files say of their kind, in the words of modelspec and of kohya's scripts."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_sampling

# modelspec architecture -> ss_base_model_version; kinds that kohya's scripts have no word for are left out.
KOHYA = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
}


def architecture(model: Any) -> dict[str, str]:
    """modelspec (1.0.0) entries that say which family a MODEL is of; empty for one that has no name there."""
    context = model.model.model_config.unet_config.get("context_dim")
    is_v = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)
    if isinstance(model.model, comfy.model_base.SDXL):
        name = "stable-diffusion-xl-v1-base"
    elif isinstance(model.model, comfy.model_base.SDXLRefiner):
        name = "stable-diffusion-xl-v1-refiner"
    else:
        second = "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512"
        name = {768: "stable-diffusion-v1", 1024: second}.get(context, "")
    if not name:
        return {}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": name,
        "modelspec.implementation": "sgm",
        "modelspec.predict_key": "v" if is_v else "epsilon",
    }


def lora_labels(model: Any, title: str) -> dict[str, str]:
    """Metadata of a LoRA file of a MODEL."""
    kind = architecture(model)
    labels = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "Dynamic",
        "modelspec.title": title,
        "modelspec.description": (
            "A concept erasure (PURE). It is exact on the MODEL it was made on. Two such files do not compose: erase "
            "both concepts in one basis instead."
        ),
    }
    if not kind:
        return labels
    name = kind["modelspec.architecture"]
    labels |= {
        "modelspec.sai_model_spec": kind["modelspec.sai_model_spec"],
        "modelspec.architecture": f"{name}/lora",
        "modelspec.implementation": "https://github.com/kohya-ss/sd-scripts",
    }
    if name in KOHYA:
        labels |= {"ss_v2": str("v2" in name), "ss_base_model_version": KOHYA[name]}
    return labels
