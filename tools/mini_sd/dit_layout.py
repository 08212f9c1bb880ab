"""Lays the narrow transformers into the files that a ComfyUI's own loaders take.

    python -m mini_sd.dit_layout BASE [FILE ...]       (in tools/; BASE/models gets them, or those that are named)

mini_sd3: one checkpoint (272 MB), CLIP-L and a 16-channel TAESD inside. mini_wan: a diffusion model (13 MB), beside it
a text encoder (246 MB, CLIPLoader of type sd3) and an autoencoder (45 MB), since the host's checkpoint loader takes
Wan's text from umT5 alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from . import dit, taehv  # isort: skip  (starts the host, before anything of comfy is imported)

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from safetensors.torch import load_file, save_file

from .layout import AE_FULL, expand_autoencoder, expand_text, put
from .narrow import WEIGHTS

SD3 = ("checkpoints", "mini_sd3.safetensors")
WAN = ("diffusion_models", "mini_wan.safetensors")
CLIP = ("text_encoders", "mini_clip_l.safetensors")
WAN_VAE = ("vae", "mini_taew2_1.safetensors")


def clip_l(prefix: str) -> dict[str, torch.Tensor]:
    """CLIP-L's text model; what the host gives on as conditioning does not pass the final layer norm."""
    state = expand_text(load_file(WEIGHTS / "text.safetensors"))
    return {k.replace("cond_stage_model.transformer.", prefix): v for k, v in state.items()}


def taesd16() -> dict[str, torch.Tensor]:
    """The autoencoder with 16 latent channels, of which it uses 4."""
    out = expand_autoencoder(*(load_file(WEIGHTS / f"vae_{side}.safetensors") for side in ("encoder", "decoder")))
    wide = {
        "taesd_encoder.14.weight": (16, AE_FULL, 3, 3),
        "taesd_encoder.14.bias": (16,),
        "taesd_decoder.1.weight": (AE_FULL, 16, 3, 3),
    }
    for key, shape in wide.items():
        out["first_stage_model." + key] = put(shape, out["first_stage_model." + key])
    # of SD 3's latents, as the host scales them
    return out | {
        "first_stage_model.vae_scale": torch.tensor(1.5305),
        "first_stage_model.vae_shift": torch.tensor(0.0609),
    }


def zimage() -> tuple[Any, Any]:
    """MODEL and VAE in Z-Image's layout, made by hand: the host's loaders know it in its published widths alone."""
    config = comfy.supported_models.ZImage(
        {"image_model": "lumina2", **dit.ZIMAGE, "in_channels": dit.LATENT, "cap_feat_dim": dit.TEXT_FULL}
    )
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = config.get_model({}, "", device=cpu)
    dit.fill(model.diffusion_model, full_state("zimage"))
    latents = config.latent_format
    vae = {key.removeprefix("first_stage_model."): value for key, value in taesd16().items()}
    scaled = {"vae_scale": torch.tensor(latents.scale_factor), "vae_shift": torch.tensor(latents.shift_factor)}
    return comfy.model_patcher.ModelPatcher(model.eval(), cpu, cpu), comfy.sd.VAE(sd={**vae, **scaled})


def narrow_state(kind: str) -> dict[str, torch.Tensor]:
    """The trained weights as they are stored."""
    return load_file(WEIGHTS / f"{kind}.safetensors")


def full_state(kind: str) -> dict[str, torch.Tensor]:
    """The diffusion model's state under the host's own names."""
    return dit.expand(kind, narrow_state(kind))


def sd3_state() -> dict[str, torch.Tensor]:
    """All of the checkpoint."""
    net = {"model.diffusion_model." + k: v for k, v in full_state("sd3").items()}
    return {**net, **clip_l("text_encoders.clip_l.transformer."), **taesd16()}


STATES = {
    SD3: sd3_state,
    WAN: lambda: full_state("wan"),
    CLIP: lambda: clip_l(""),
    WAN_VAE: lambda: taehv.expand(load_file(WEIGHTS / "wan_vae.safetensors")),
}


def install(base: str | Path, *files: tuple[str, str]) -> list[Path]:
    """The files (all if none are named) among the models of a ComfyUI's base folder, made if they are not there."""
    out = []
    for folder, name in files or STATES:
        target = Path(base) / "models" / folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(f".{os.getpid()}.part")  # others may make it too
            state = STATES[folder, name]()
            save_file({k: v.contiguous() for k, v in state.items()}, part, metadata={"format": "pt"})
            os.replace(part, target)
        out.append(target)
    return out


if __name__ == "__main__":
    install(sys.argv[1], *(file for file in STATES if file[1] in sys.argv[2:]))
