"""Files through the host: where they go, checkpoints that are whole and verified, and an edit as a LoRA file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import comfy.lora
import comfy.model_base
import comfy.model_sampling
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from safetensors import safe_open
from safetensors.torch import save_file

from ...pure_core.errors import PureError
from ...pure_core.files import atomic_path
from ...pure_core.lora import DTYPES, dense_factors, join_factors, lora_factors, lora_tensors
from .layers import ROOT, unet_of
from .patches import ProjectionAdapter, edits_of, effective_weight, is_inside_merge, recipes_of
from .reporting import check_cancelled

FOLDER = "pure"  # the model folder of saved bases
SUFFIX = ".safetensors"
ROOM = 16 * 2**20  # bytes that have to stay free beside the file itself
# Worst relative error of a stored weight that is still rounding: a few units in the last place of its type, and for
# float32
# what a GPU's product of U and M may differ from a CPU's.
STORED = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
STORED_FP8 = 0.15


def register_folder() -> None:
    """Makes models/pure and output/pure the host's folder type `pure`, for .safetensors files alone."""
    for parent in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(FOLDER, os.path.join(parent, FOLDER))
    folder_paths.folder_names_and_paths[FOLDER] = (folder_paths.folder_names_and_paths[FOLDER][0], {SUFFIX})


def saved_bases() -> list[str]:
    """Names of the files in the folder type `pure`."""
    return folder_paths.get_filename_list(FOLDER)


def basis_path(name: str) -> Path:
    """The file of a listed name; raises PureError on any other."""
    if name not in saved_bases():
        raise PureError(
            f"There is no basis {name!r} in models/{FOLDER} or output/{FOLDER}: choose one from the list "
            "(refresh it after copying a file there)."
        )
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def new_path(prefix: str) -> Path:
    """A file of the output folder that is not there yet: prefix_00001_.safetensors and so on, numbered by the host.

    PureError.
    """
    output = os.path.abspath(folder_paths.get_output_directory())
    inside = os.path.normpath(
        prefix
    )  # the host counts files by the name as it is written: with "name/" it would find none and start at 1 again
    folder = os.path.abspath(os.path.join(output, os.path.dirname(inside)))
    if (
        not os.path.basename(inside).strip(". ")
        or os.path.splitdrive(inside)[0]
        or os.path.commonpath((output, folder)) != output
    ):
        raise PureError(
            f"filename_prefix is {prefix!r}: it has to be a name inside ComfyUI's output folder, such as pure/basis."
        )
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(inside, output)
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise PureError(
            f"The folder of {prefix!r} cannot be used ({error}): choose another filename_prefix."
        ) from error
    while (
        target := Path(folder) / f"{name}_{counter:05}_{SUFFIX}"
    ).exists():  # a disk that does not tell upper from lower case
        counter += 1
    return target


def embeds(embed_recipe: bool) -> bool:
    """Whether prompts and settings go into files: only if the user and the host's --disable-metadata both allow it."""
    return embed_recipe and not args.disable_metadata


def check_room(target: Path, size: int) -> None:
    """Raises PureError where the disk has no room for a file of this size."""
    free = shutil.disk_usage(target.parent).free
    if free < size + ROOM:
        raise PureError(
            f"{target.name} needs {size / 2**20:.0f} MB and its disk has {free / 2**20:.0f} MB left: make room "
            "or choose another folder; nothing was written."
        )


def architecture(model) -> dict[str, str]:
    """modelspec (1.0.0) entries that say which family a MODEL is of; empty for one that has no name there."""
    context, is_v = (
        model.model.model_config.unet_config.get("context_dim"),
        model.model.model_type == comfy.model_base.ModelType.V_PREDICTION,
    )
    if isinstance(model.model, comfy.model_base.SDXL):
        name = "stable-diffusion-xl-v1-base"
    elif isinstance(model.model, comfy.model_base.SDXLRefiner):
        name = "stable-diffusion-xl-v1-refiner"
    else:
        name = {
            768: "stable-diffusion-v1",
            1024: "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512",
        }.get(context)
    return (
        {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": name,
            "modelspec.implementation": "sgm",
            "modelspec.predict_key": "v" if is_v else "epsilon",
        }
        if name
        else {}
    )


def sampling_marks(model) -> dict[str, torch.Tensor]:
    """The keys by which the host's loader knows v-prediction, zero terminal SNR, EDM noise levels and Playground's EDM
    again."""
    sampling, marks = model.get_model_object("model_sampling"), {}
    if model.model.model_type == comfy.model_base.ModelType.EDM:
        marks = {
            f"edm_{what}": getattr(model.model.latent_format, f"latents_{what}").flatten().float()
            for what in ("mean", "std")
        }
    elif isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM) and isinstance(
        sampling, comfy.model_sampling.V_PREDICTION
    ):
        marks = {
            f"edm_vpred.{end}": torch.as_tensor(getattr(sampling, end)).float() for end in ("sigma_max", "sigma_min")
        }
    if model.model.model_type == comfy.model_base.ModelType.V_PREDICTION:
        marks["v_pred"] = torch.tensor([])
        if getattr(sampling, "zsnr", False):
            marks["ztsnr"] = torch.tensor([])
    return marks


def save_checkpoint(model, clip, vae, target: Path, embed_recipe: bool, step) -> float | None:
    """Writes a whole checkpoint through the host's saver and verifies it before it gets its name.

    Returns the worst relative error of the edited weights as stored; None where the MODEL carries no edit. `step` is
    called after each stage. Raises PureError where the file cannot be written or does not hold the edit; then no file
    is left.
    """
    recipes = recipes_of(model)
    check_room(target, sum(part.model_size() for part in (model, clip.patcher, vae.patcher)))
    metadata = {**architecture(model), "modelspec.title": target.stem}
    if embeds(embed_recipe) and recipes:
        metadata["pure"] = json.dumps({"format": "pure-checkpoint", "version": 1, "edits": recipes})
    with atomic_path(target) as part:
        comfy.sd.save_checkpoint(str(part), model, clip, vae, metadata=metadata, extra_keys=sampling_marks(model))
        step()
        check_cancelled()
        error = verify_checkpoint(model, part)
        step()
    return error


def verify_checkpoint(model, path: Path) -> float | None:
    """Worst relative error of the edited weights in a file; raises PureError where one is not the MODEL's."""
    worst, own = None, model.get_key_patches(ROOT)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for key in edits_of(model):
            (name,) = model.model.model_config.process_unet_state_dict_for_saving({key.removeprefix(ROOT): None})
            stored, wanted = file.get_tensor(name), effective_weight(model, key, None, own)
            scale = name.removesuffix("weight") + "scale_weight"  # scaled fp8
            values = stored.float() * (file.get_tensor(scale).float() if scale in names else 1.0)
            error = float((values - wanted).norm() / wanted.norm())
            if not error <= STORED.get(stored.dtype, STORED_FP8):
                raise PureError(
                    f"The written checkpoint does not hold the edit of {name} (relative error {error:.2g}): the "
                    "host did not save what it samples with; no file was kept; please report this with the "
                    "MODEL's name."
                )
            worst = max(worst or 0.0, error)
    return worst


def save_lora(model, target: Path, dtype: str, embed_recipe: bool, step) -> dict[str, int]:
    """Writes all edits of a MODEL as one LoRA; returns the rank of each weight.

    Raises PureError where there is none.
    """
    if dtype not in DTYPES:
        raise PureError(f"dtype is {dtype!r}, and there are only: {', '.join(DTYPES)}.")
    keys = edits_of(model)
    if not keys and is_inside_merge(model):
        raise PureError(
            "The edit on this MODEL came in through a merge, so it is no LoRA any more: save the LoRA from the "
            "MODEL before the merge, or save a checkpoint."
        )
    if not keys:
        raise PureError(
            "This MODEL carries no PURE edit, so there is nothing to save: connect the MODEL from PURE Apply "
            "Projection (strength above 0), with no node after it that drops its patches."
        )
    if any(entry[2] != 1.0 for key, positions in keys.items() for entry in model.patches[key][positions[-1] + 1 :]):
        raise PureError(
            "A merge after PURE Apply Projection leaves only a part of the edit on this MODEL: save the LoRA "
            "from the MODEL before the merge, or save a checkpoint."
        )
    recipes, names = recipes_of(model), lora_names(model, list(keys))
    tensors, ranks, own = {}, {}, model.get_key_patches(ROOT)
    for key in keys:
        up, down = chain_factors(model, key, own)
        tensors.update(lora_tensors(names[key], up, down, dtype))
        ranks[names[key]] = up.shape[1]
        step()
        check_cancelled()
    head = {"format": "pure-lora", "version": 1, "ranks": ranks, **({"edits": recipes} if embeds(embed_recipe) else {})}
    kind = architecture(model)
    metadata = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "Dynamic",
        "pure": json.dumps(head),
        "modelspec.title": target.stem,
        "modelspec.description": (
            "A concept erasure (PURE). It is exact on the MODEL it was made on; two such files do not compose: erase "
            "both concepts in one basis instead."
        ),
    }
    if kind:
        metadata.update(
            {
                "modelspec.sai_model_spec": kind["modelspec.sai_model_spec"],
                "modelspec.architecture": kind["modelspec.architecture"] + "/lora",
                "modelspec.implementation": "https://github.com/kohya-ss/sd-scripts",
                "ss_v2": str("v2" in kind["modelspec.architecture"]),
                "ss_base_model_version": {
                    "stable-diffusion-v1": "sd_v1",
                    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
                }.get(kind["modelspec.architecture"], "sd_v2"),
            }
        )
    check_room(target, sum(t.nbytes for t in tensors.values()))
    with atomic_path(target) as part:
        save_file(tensors, part, metadata=metadata)
    return ranks


def chain_factors(model, key: str, own: dict | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """up, down in float64 of everything from the first to the last edit of a weight, other patches in between included.

    They are computed from the weight just before the first edit, so the file is exact on the base with the LoRAs before
    it.
    """
    positions, entries = edits_of(model)[key], model.patches[key]
    weight, pairs = effective_weight(model, key, positions[0], own).double(), []
    for entry in entries[positions[0] : positions[-1] + 1]:
        strength, patch, strength_model, offset, function = entry
        if isinstance(patch, ProjectionAdapter) and strength_model == 1.0 and offset is None and function is None:
            u, m, side = patch.weights[:3]
            up, down = lora_factors(weight, strength * u.to("cpu", torch.float64), m.to("cpu", torch.float64), side)
        else:
            up, down = dense_factors(comfy.lora.calculate_weight([entry], weight.float(), key).double() - weight)
        pairs.append((up, down))
        weight = weight + up @ down
    return join_factors(pairs)


def lora_names(model, keys: list[str]) -> dict[str, str]:
    """The name of each weight in a LoRA file, as the host, kohya's scripts and diffusers read it.

    SDXL types use the U-Net's own block names, as kohya's scripts do; SD 1 and 2 diffusers' block names, the only ones
    that diffusers loads for them.
    """
    if isinstance(model.model, (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner)):
        own = {key: key.removeprefix(ROOT) for key in keys}
    else:
        to_diffusers = {
            f"{ROOT}{v}": k for k, v in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items()
        }
        own = {key: to_diffusers.get(key, key.removeprefix(ROOT)) for key in keys}
    names = {key: "lora_unet_" + name.removesuffix(".weight").replace(".", "_") for key, name in own.items()}
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    for key, name in names.items():
        if known.get(name) != key:
            raise PureError(
                f"This ComfyUI would not find {name} again: save a checkpoint instead, and please report this "
                f"with the MODEL's name ({type(unet_of(model)).__name__})."
            )
    return names
