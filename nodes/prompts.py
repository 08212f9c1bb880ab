"""PURE_ConceptPrompts."""

from __future__ import annotations

from comfy_api.latest import io

from ..pure_core.prompts import PHRASINGS, make_prompts
from . import sockets
from .host import reporting


class ConceptPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_ConceptPrompts",
            display_name="PURE Concept Prompts (step 1)",
            category=sockets.CATEGORY,
            **sockets.found_as(*sockets.ERASE, "anchor prompts"),
            description=(
                "Turns what to forget and what to keep into prompts, and checks both lists before anything is sampled."
            ),
            inputs=[
                io.String.Input(
                    "forget",
                    multiline=True,
                    default="",
                    placeholder="what to erase: one per line",
                    tooltip=(
                        "What to erase, one per line: the concept, and below it descriptions of it that do not name "
                        "it. Blank and repeated lines are ignored and counted in the listing."
                    ),
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    default="",
                    placeholder="what must stay: its neighbours, one per line",
                    tooltip=(
                        "What must stay, one per line: what is most like the concept. Do not list the concept "
                        "itself, or a twin of it: what is listed here is spared."
                    ),
                ),
                io.Combo.Input(
                    "kind",
                    options=list(PHRASINGS),
                    default="object or character",
                    tooltip=(
                        "Which six phrasings each line gets. Artistic style: lines to keep are whole prompts. Free "
                        "text: all lines are, and templates are not used."
                    ),
                ),
                io.Boolean.Input(
                    "keep_empty_prompt",
                    default=True,
                    tooltip=(
                        "Also keeps the empty prompt, which the unconditional half of classifier-free guidance uses. "
                        "Leave it on."
                    ),
                ),
                sockets.advanced(
                    io.String.Input(
                        "templates",
                        multiline=True,
                        default="",
                        placeholder="a photo of {}",
                        tooltip=(
                            "Your own phrasings instead of the kind's six: one per line, with {} where the concept "
                            "goes."
                        ),
                    )
                ),
            ],
            outputs=[
                sockets.Prompts.Output(display_name="forget", tooltip="Prompts for a PURE Capture Activations."),
                sockets.Prompts.Output(display_name="keep", tooltip="Prompts for another PURE Capture Activations."),
                io.String.Output(display_name="listing", tooltip="Every prompt of both lists, and how many they are."),
            ],
            is_output_node=True,  # so that mistakes in the lists are said even where nothing is connected yet
        )

    @classmethod
    def execute(cls, forget: str, keep: str, kind: str, keep_empty_prompt: bool, templates: str) -> io.NodeOutput:
        to_forget, to_keep, listing = make_prompts(forget, keep, kind, keep_empty_prompt, templates)
        return io.NodeOutput(to_forget, to_keep, listing, ui=reporting.report(listing))
