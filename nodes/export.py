"""PURE_SaveLoRA and PURE_SaveCheckpoint."""

from __future__ import annotations

from comfy_api.latest import io

from ..pure_core.lora import DTYPES
from . import sockets
from .host import patches, reporting, saving


def later_patches(model) -> list[str]:
    """A warning where other patches follow the edit on a weight; else none."""
    later = patches.patched_after(model)
    return (
        [
            (
                f"{len(later)} of {len(patches.edits_of(model))} edited weights carry a patch that came after PURE "
                "Apply Projection (a LoRA or a merge): that part is not projected"
            )
        ]
        if later
        else []
    )


class SaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
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
                    default="loras/pure",
                    tooltip=(
                        "Inside ComfyUI's output folder; a number is added and no file is ever overwritten. "
                        "output/loras is listed by LoRA loaders."
                    ),
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
    def execute(cls, model, filename_prefix, dtype, embed_recipe) -> io.NodeOutput:
        target = saving.new_path(filename_prefix)
        ranks = saving.save_lora(
            model, target, dtype, embed_recipe, reporting.Progress(None, len(patches.edits_of(model))).step
        )
        warnings = [f"{w}, and is not in this file." for w in later_patches(model)]
        text = "\n".join(
            [
                *(f"Warning: {w}" for w in warnings),
                (
                    f"Saved {target.name}: {len(ranks)} weights, ranks {min(ranks.values())} to "
                    f"{max(ranks.values())}, {dtype}, {target.stat().st_size / 2**20:.1f} MB. Load it at strength 1; "
                    "at -1 it takes the erasure back."
                ),
            ]
        )
        return io.NodeOutput(str(target), ui=reporting.report(text, warnings))


class SaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
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
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint; it is saved as it is."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint; it is saved as it is."),
                io.String.Input(
                    "filename_prefix",
                    default="checkpoints/pure",
                    tooltip=(
                        "Inside ComfyUI's output folder; a number is added and no file is ever overwritten. "
                        "output/checkpoints is listed by checkpoint loaders."
                    ),
                ),
                io.Boolean.Input("embed_recipe", default=True, tooltip=sockets.RECIPE),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, vae, filename_prefix, embed_recipe) -> io.NodeOutput:
        target = saving.new_path(filename_prefix)
        reporting.show(f"Saving {target.name}", cls.hidden.unique_id)
        error = saving.save_checkpoint(model, clip, vae, target, embed_recipe, reporting.Progress(None, 2).step)
        warnings = [f"{w}." for w in later_patches(model)]
        if error is None:
            merged = patches.is_inside_merge(model)
            warnings.append(
                "The edit on this MODEL came in through a merge and is saved as merged, unverified."
                if merged
                else (
                    "This MODEL carries no PURE edit: it was saved as it is. Connect the MODEL from PURE Apply "
                    "Projection to save the erasure."
                )
            )
        checked = (
            ""
            if error is None
            else (
                f"; read back, the {len(patches.edits_of(model))} edited weights differ from the MODEL's by at most "
                f"{error:.1e} (relative)"
            )
        )
        text = "\n".join(
            [
                *(f"Warning: {w}" for w in warnings),
                f"Saved {target.name}, {target.stat().st_size / 2**20:.0f} MB{checked}.",
            ]
        )
        return io.NodeOutput(str(target), ui=reporting.report(text, warnings))
