"""PURE_ConceptPrompts."""

from __future__ import annotations

from comfy_api.latest import io

from ..pure_core.prompts import PRESETS, ROLES, make_prompts
from . import sockets
from .host import reporting


class ConceptPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PURE_ConceptPrompts",
            display_name="PURE Concept Prompts",
            category=sockets.CATEGORY,
            **sockets.found_as(*sockets.ERASE, "anchor prompts"),
            description=(
                "Turns concepts into anchor prompts. Use one for what to forget and one for the neighbours to retain."
            ),
            inputs=[
                io.String.Input(
                    "concepts",
                    multiline=True,
                    default="",
                    placeholder="one concept per line",
                    tooltip=(
                        "One concept per line. Blank and repeated lines are ignored and counted in the listing. To "
                        "forget: the concept, and descriptions of it that do not name it. To retain: its nearest "
                        "neighbours."
                    ),
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="object or character",
                    tooltip=(
                        "Which six phrasings each concept gets. Free text: each line is a whole prompt and templates "
                        "are not used."
                    ),
                ),
                io.Combo.Input(
                    "role",
                    options=list(ROLES),
                    default="forget",
                    tooltip="Whether these concepts are to be erased (forget) or protected (retain).",
                ),
                io.Boolean.Input(
                    "include_empty_prompt",
                    default=True,
                    tooltip=(
                        "For retain only: also protect the empty prompt, which the unconditional half of "
                        "classifier-free guidance uses. Leave it on."
                    ),
                ),
                sockets.advanced(
                    io.String.Input(
                        "templates",
                        multiline=True,
                        default="",
                        placeholder="a photo of {}",
                        tooltip=(
                            "Your own phrasings instead of the preset's six: one per line, with {} where the concept "
                            "goes."
                        ),
                    )
                ),
            ],
            outputs=[
                sockets.Prompts.Output(display_name="prompts", tooltip="Anchor prompts for PURE Capture Activations."),
                io.String.Output(
                    display_name="listing", tooltip="Every prompt, one per line, after a line that counts them."
                ),
                io.Int.Output(display_name="count", tooltip="How many prompts there are."),
            ],
        )

    @classmethod
    def execute(cls, concepts, preset, role, include_empty_prompt, templates) -> io.NodeOutput:
        prompts, listing = make_prompts(concepts, preset, role, include_empty_prompt, templates)
        return io.NodeOutput(prompts, listing, len(prompts.pairs), ui=reporting.report(listing))
