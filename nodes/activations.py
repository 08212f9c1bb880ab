"""PURE_MergeActivations, PURE_SaveActivations and PURE_LoadActivations: captures of many prompts, runs and machines."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pure_core.activations import LISTED, Activations, merge_activations
from ..pure_core.activations_file import load_activations, save_activations
from ..pure_core.build import shortened
from . import sockets
from .host import paths, reporting

MORE = "cdefgh"  # further inputs of PURE Merge Activations


def described(capture: Activations) -> str:
    """What a capture holds, in one sentence."""
    what = f"{len(capture.anchors.prompts)} prompts to {LISTED[capture.role]}: " if capture.anchors.prompts else ""
    concepts = shortened(capture.anchors.concepts, 3)
    return f"{what}{concepts}; {capture.count} recordings in each of {len(capture.moments)} attention layers."


class MergeActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_MergeActivations",
            display_name="PURE Merge Activations",
            category=sockets.CATEGORY,
            **sockets.found_as("join activations", "several concepts"),
            description="Joins captures of the same role, as if all their prompts had been captured at once.",
            inputs=[
                sockets.wire(sockets.Activations, "activations_a", "A capture."),
                sockets.wire(
                    sockets.Activations,
                    "activations_b",
                    "Another one: same MODEL, role, steps, seeds, seed, sampler, cfg and size.",
                ),
                *(
                    sockets.wire(sockets.Activations, f"activations_{letter}", "One more.", optional=True)
                    for letter in MORE
                ),
            ],
            outputs=[sockets.Activations.Output(display_name="activations", tooltip="All of them together.")],
        )

    @classmethod
    def execute(cls, activations_a: Any = None, activations_b: Any = None, **more: Any) -> io.NodeOutput:
        sockets.connected(cls, activations_a=activations_a, activations_b=activations_b)
        total = activations_a
        for name, capture in {"activations_b": activations_b, **more}.items():
            if capture is not None:
                total = merge_activations(total, capture, "activations_a", name)
        return io.NodeOutput(total)


class SaveActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_SaveActivations",
            display_name="PURE Save Activations",
            category=sockets.CATEGORY,
            **sockets.found_as("save capture"),
            description=(
                "Saves a capture, so that another run, or another machine, builds a basis from it without sampling "
                "again. Several files merge exactly."
            ),
            inputs=[
                sockets.wire(
                    sockets.Activations, "activations", "From PURE Capture Activations or PURE Merge Activations."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="pure/activations_%concept%",
                    tooltip=f"{sockets.PREFIX} output/pure is listed by PURE Load Activations.",
                ),
                io.Boolean.Input("embed_recipe", default=True, tooltip=sockets.WORDS),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, filename_prefix: str, embed_recipe: bool, activations: Any = None) -> io.NodeOutput:
        sockets.connected(cls, activations=activations)
        target = paths.new_path(paths.named(filename_prefix, activations.anchors.concepts, embed_recipe))
        paths.check_room(target, activations.nbytes)
        target = save_activations(activations, target, paths.embeds(embed_recipe))
        text = f"Saved {target.name}, {target.stat().st_size / 2**20:.1f} MB: {described(activations)}"
        return io.NodeOutput(str(target), ui=reporting.report(text))


class LoadActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_LoadActivations",
            display_name="PURE Load Activations",
            category=sockets.CATEGORY,
            **sockets.found_as("load capture"),
            description="Loads a saved capture and checks all of it.",
            inputs=[
                io.Combo.Input("name", options=paths.saved_files(), tooltip="A file of models/pure or output/pure.")
            ],
            outputs=[
                sockets.Activations.Output(
                    display_name="activations", tooltip="For PURE Build Basis or PURE Merge Activations."
                ),
                io.String.Output(display_name="report", tooltip="What was captured."),
            ],
            is_output_node=True,  # so that the host shows the report again when the result comes from its cache
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> Any:
        return paths.state_of(name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        capture = load_activations(paths.saved_path(name), reporting.check_cancelled)
        text = described(capture)
        return io.NodeOutput(capture, text, ui=reporting.report(text))
