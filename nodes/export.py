"""PURE_SaveLoRA and PURE_SaveCheckpoint."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pure_core.lora import DTYPES
from . import sockets
from .host import checkpoint, lora_file, patches, paths, reporting
from .host.sampling import check_parts

UNWIRED = object()  # an input that nothing is connected to; None is a part that a loader did not find


def later_patches(model: Any) -> list[str]:
    """A warning where other patches follow the edit, on whatever weight; else none."""
    later = patches.patched_after(model)
    if not later:
        return []
    return [f"{len(later)} weights carry a patch that came after PURE Apply Projection (a LoRA or a merge)"]


class SaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_SaveLoRA",
            display_name="PURE Save LoRA",
            category=sockets.CATEGORY,
            **sockets.found_as("erasure LoRA", "extract LoRA"),
            description=(
                "Saves the erasure as an ordinary LoRA file for ComfyUI and diffusers, without a decomposition. Two "
                "such files do not compose: to erase several concepts, build one basis of them, or save the MODEL "
                "that carries both edits."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "The edited MODEL. All PURE edits on it, and LoRAs between them, go into one file; LoRAs "
                        "before them have to be on the MODEL where the file is used."
                    ),
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/pure_%concept%",
                    tooltip=f"{sockets.PREFIX} output/loras is listed by LoRA loaders.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="fp16",
                    tooltip="fp16 is small and read everywhere; fp32 is exact.",
                ),
                io.Boolean.Input("embed_recipe", default=True, tooltip=sockets.RECIPE),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, filename_prefix: str, dtype: str, embed_recipe: bool) -> io.NodeOutput:
        target = paths.new_path(paths.named(filename_prefix, patches.concepts_of(model), embed_recipe))
        progress = reporting.Progress(None, len(patches.spans_of(model)))
        saved = lora_file.save_lora(model, target, dtype, embed_recipe, progress.step)
        warnings = [f"{w}. That part is not in this file: load it from its own." for w in later_patches(model)]
        size, ranks = saved.path.stat().st_size / 2**20, saved.ranks.values()
        done = (
            f"Saved {saved.path.name}: {len(ranks)} weights, ranks {min(ranks)} to {max(ranks)}, {dtype}, {size:.1f} "
            "MB. Load it at strength 1; at -1 it takes the erasure back."
        )
        text = "\n".join([*(f"Warning: {w}" for w in warnings), done])
        return io.NodeOutput(str(saved.path), ui=reporting.report(text, warnings))


class SaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_SaveCheckpoint",
            display_name="PURE Save Checkpoint",
            category=sockets.CATEGORY,
            **sockets.found_as("save erased model", "export checkpoint"),
            description=(
                "Saves the edited MODEL with its CLIP and VAE as a checkpoint, reads it back and says how exact it "
                "is. A file is whole or not there."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The edited MODEL, with everything that is on it."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The CLIP of the same checkpoint; it is saved as it is. Leave CLIP and VAE unconnected to "
                        "save the diffusion model alone, as Wan or Flux come."
                    ),
                ),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the same checkpoint; it is saved as it is."),
                io.String.Input(
                    "filename_prefix",
                    default="checkpoints/pure_%concept%",
                    tooltip=(
                        f"{sockets.PREFIX} output/checkpoints is listed by checkpoint loaders, "
                        "output/diffusion_models by Load Diffusion Model."
                    ),
                ),
                io.Boolean.Input("embed_recipe", default=True, tooltip=sockets.RECIPE),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: Any, filename_prefix: str, embed_recipe: bool, clip: Any = UNWIRED, vae: Any = UNWIRED
    ) -> io.NodeOutput:
        wired = {name: part for name, part in (("clip", clip), ("vae", vae)) if part is not UNWIRED}
        check_parts(**wired)
        target = paths.new_path(paths.named(filename_prefix, patches.concepts_of(model), embed_recipe))
        reporting.show(f"Saving {target.name}", cls.hidden.unique_id)
        progress = reporting.Progress(None, 2)
        saved = checkpoint.save_checkpoint(
            model, wired.get("clip"), wired.get("vae"), target, embed_recipe, progress.step
        )
        warnings = [*saved.warnings, *(f"{w}: it is saved with the rest, unprojected." for w in later_patches(model))]
        parts = "all parts are" if wired else "the diffusion model alone is"
        checked = f"Read back: {parts} there"
        if saved.error is not None:
            edited = len(patches.edits_of(model))
            checked += f", and the {edited} edited weights are the MODEL's to {saved.error:.1e} (relative)"
        elif patches.is_inside_merge(model):
            warnings.append("The edit on this MODEL came in through a merge and is saved as merged, unverified.")
        else:
            warnings.append(
                "This MODEL carries no PURE edit: it was saved as it is. Connect the MODEL from PURE Apply "
                "Projection to save the erasure."
            )
        size = saved.path.stat().st_size / 2**20
        text = "\n".join(
            [*(f"Warning: {w}" for w in warnings), f"Saved {saved.path.name}, {size:.0f} MB.", f"{checked}."]
        )
        return io.NodeOutput(str(saved.path), ui=reporting.report(text, warnings))
