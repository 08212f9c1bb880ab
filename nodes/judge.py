"""PURE_JudgeImages."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from comfy_api.latest import io

from ..pure_core import zero_shot
from ..pure_core.errors import PureError
from ..pure_core.grid import comparison_grid
from ..pure_core.prompts import PHRASINGS
from . import sockets
from .host import reporting
from .host.clip_space import picture_vectors, text_vectors
from .host.sampling import check_parts


class JudgeImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_JudgeImages",
            display_name="PURE Judge Images",
            category=sockets.CATEGORY,
            **sockets.found_as("evaluate unlearning", "clip score", "zero-shot", "is it gone"),
            description=(
                "Counts how many pictures show the concept before and after an edit, and how many of what you keep "
                "stayed what they were. CLIP looks at the pictures."
            ),
            inputs=[
                io.Image.Input("before", tooltip="Pictures of the original MODEL, from PURE Compare Images."),
                io.Image.Input("after", tooltip="The edited MODEL's pictures of the same prompts and seeds."),
                io.Clip.Input(
                    "clip",
                    tooltip=(
                        "The CLIP of an SDXL checkpoint. For others: model.safetensors of "
                        "openai/clip-vit-large-patch14, by Load CLIP."
                    ),
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip=(
                        "The part of the same CLIP that sees pictures, by Load CLIP Vision. With SDXL's CLIP: "
                        "clip_vision_g.safetensors. Otherwise the file that you loaded as clip."
                    ),
                ),
                io.String.Input(
                    "forget",
                    multiline=True,
                    default="",
                    placeholder="what was erased: one per line",
                    tooltip=(
                        "What was erased, one per line: as you wrote it to erase it, or as anyone would describe what "
                        "is to be seen."
                    ),
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    default="",
                    placeholder="what else it might be, one per line",
                    tooltip=(
                        "What else the pictures may show, one per line: what you keep. A picture that the words "
                        '"a picture" fit best counts as nothing in particular.'
                    ),
                ),
                io.Combo.Input(
                    "kind",
                    options=list(PHRASINGS),
                    default="object or character",
                    tooltip="Which phrasings of a line CLIP compares, as in PURE Concept Prompts.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="Before above after, with what is seen below."),
                io.String.Output(display_name="report", tooltip="The verdict, then the counts with intervals."),
                io.String.Output(display_name="json", tooltip="The same numbers for programs."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, before: Any, after: Any, clip: Any, clip_vision: Any, forget: str, keep: str, kind: str
    ) -> io.NodeOutput:
        words = zero_shot.words_of(forget, keep, kind)
        check_parts(clip=clip, clip_vision=clip_vision)
        if before.shape != after.shape:
            raise PureError(
                f"There are {len(before)} pictures before and {len(after)} after, or they differ in size. Connect both "
                "outputs of one PURE Compare Images."
            )
        reporting.show(f"Looking at {len(before)} pictures before and after", cls.hidden.unique_id)
        classes = torch.stack([zero_shot.class_embedding(text_vectors(clip, texts)) for texts in words.texts])
        progress = reporting.Progress(None, 2 * len(before))
        similar = [
            zero_shot.cosines(picture_vectors(clip_vision, pictures, classes.shape[-1], progress), classes)
            for pictures in (before, after)
        ]
        zero_shot.check_related(similar[0])
        judged = zero_shot.Judged(words, *map(zero_shot.probabilities, similar))
        text, warnings = zero_shot.describe(judged)
        columns = math.ceil(math.sqrt(2 * len(before)))
        sheet = comparison_grid(before, after, zero_shot.captions(judged), columns)
        shown = reporting.report(text, warnings, sheet, cls)
        return io.NodeOutput(sheet, text, json.dumps(zero_shot.as_numbers(judged)), ui=shown)
