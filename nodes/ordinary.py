"""PURE_CaptureOrdinary: what speaks for all that a person does not list, captured once per MODEL and kept as a file."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pure_core.ordinary import NEUTRAL, ORDINARY, PLAIN, STEPS, TOGETHER
from ..pure_core.prompts import Prompts, anchor_prompts
from . import sockets
from .host import expansion, kept_captures, paths, sampling, sites
from .host.reporting import report


class CaptureOrdinary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_CaptureOrdinary",
            display_name="PURE Capture Ordinary Pictures (step 2)",
            category=sockets.CATEGORY,
            **sockets.found_as("keep the rest", "prior preservation", "regularization", "general prompts"),
            description=(
                "Captures ordinary pictures of all kinds, so that erasing a concept spares what you did not list. "
                "It runs once per MODEL: the result is kept as a file and used again for every erasure."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL to erase from, as in PURE Capture Activations."),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
                io.Combo.Input(
                    "language",
                    options=list(ORDINARY),
                    default="pictures",
                    tooltip=(
                        "pictures: captions in plain English. booru tags: for checkpoints that are asked by tags. "
                        "Choose it for captions of your own, too."
                    ),
                ),
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="",
                    placeholder="empty: the pack's own captions",
                    tooltip=(
                        "Your own captions instead, one per line: a hundred pictures of all kinds that your MODEL "
                        "draws. Leave out what you want to erase."
                    ),
                ),
                io.Int.Input("steps", default=STEPS, min=1, max=100, tooltip="Of each picture. Five are enough."),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Of the pictures, in pixels. 0: the size the MODEL was trained for. Smaller is faster.",
                ),
                sockets.advanced(
                    io.Int.Input(
                        "batch_size",
                        default=4,
                        min=1,
                        max=64,
                        tooltip="How many pictures run at once. 1 needs least memory.",
                    )
                ),
                sockets.advanced(
                    io.Boolean.Input(
                        "keep_file",
                        default=True,
                        tooltip=(
                            "Keeps the result in models/pure/ordinary and uses it next time. It is captured again for "
                            "another MODEL, LoRA, CLIP, size or list of captions. Deleting the file is safe."
                        ),
                    )
                ),
            ],
            outputs=[
                sockets.Activations.Output(display_name="ordinary", tooltip="For PURE Build Basis."),
                io.String.Output(display_name="report", tooltip="What was captured, or which file it came from."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # so that the host shows the report again when the result comes from its cache
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        language: str,
        captions: str,
        steps: int,
        size: int,
        batch_size: int,
        keep_file: bool,
    ) -> io.NodeOutput:
        lines = captions if captions.strip() else "\n".join(ORDINARY[language])
        pairs = anchor_prompts(lines, "retain", "free text", keep_empty_prompt=True).pairs
        neutral = tuple((PLAIN, text) for text in NEUTRAL[language])
        prompts = Prompts("retain", (*((TOGETHER, text) for _, text in pairs), *neutral))
        found = sites.attention_sites(model)
        side = size or expansion.native_size(model, found)
        trajectory = sampling.Trajectory(
            steps=steps,
            recorded_steps=steps,
            seeds=1,
            seed=0,
            cfg=1.0,
            width=side,
            height=side,
            sampler_name="euler",
            scheduler=sampling.usual_scheduler(found),
            batch_size=batch_size,
        )
        kept = keep_file and (not captions.strip() or paths.embeds(True))
        ordinary, told = kept_captures.captured(model, clip, prompts, trajectory, kept, cls.hidden.unique_id)
        return io.NodeOutput(ordinary, told, ui=report(told))
