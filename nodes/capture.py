"""PURE_CaptureActivations."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pure_core.activations import LISTED
from ..pure_core.build import shortened
from . import sockets
from .host import recording, reporting, sampling, sites


class CaptureActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_CaptureActivations",
            display_name="PURE Capture Activations (step 2)",
            category=sockets.CATEGORY,
            **sockets.found_as(*sockets.ERASE, "record activations", "cross-attention"),
            description=(
                "Samples the prompts for a few steps and records what the MODEL's attention layers make of them. "
                "The MODEL is not changed."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The MODEL to erase from. LoRAs already on it are part of what is recorded."
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint; each prompt is encoded once."),
                sockets.wire(sockets.Prompts, "prompts", "From PURE Concept Prompts."),
                io.Int.Input(
                    "steps",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="Length of the denoising schedule. Ten are enough.",
                ),
                io.Int.Input(
                    "recorded_steps",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip=(
                        "How many of its first steps are run and recorded; the rest is not run. Fewer is faster and "
                        "sees coarse shapes only."
                    ),
                ),
                io.Int.Input(
                    "seeds",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many noises each prompt starts from, the same for all. More is steadier and slower.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Of the first noise. The same seed gives the same basis.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.5,
                    tooltip=(
                        "Guidance while recording. 1 runs only the conditional half and is twice as fast; only that "
                        "half is ever recorded."
                    ),
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=16,
                    max=16384,
                    step=8,
                    tooltip=(
                        "Of the pictures that the trajectory would draw. The size the MODEL was trained for is best, "
                        "smaller is faster."
                    ),
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=16,
                    max=16384,
                    step=8,
                    tooltip="Of the pictures that the trajectory would draw.",
                ),
                sockets.advanced(
                    io.Combo.Input(
                        "sampler_name",
                        options=sampling.offered_samplers(),
                        default="euler",
                        tooltip=(
                            "Samplers that draw noise, adapt their steps or evaluate twice a step are not offered: "
                            "what they record cannot be repeated."
                        ),
                    )
                ),
                sockets.advanced(
                    io.Combo.Input(
                        "scheduler",
                        options=sampling.offered_schedulers(),
                        default="normal",
                        tooltip="How the noise levels of the schedule are spaced.",
                    )
                ),
                sockets.advanced(
                    io.Int.Input(
                        "batch_size",
                        default=4,
                        min=1,
                        max=64,
                        tooltip="How many prompts and noises run at once. Changes speed and memory, not the result.",
                    )
                ),
                sockets.experimental(),
            ],
            outputs=[
                sockets.Activations.Output(
                    display_name="activations", tooltip="What each attention layer recorded, for PURE Build Basis."
                ),
                io.String.Output(display_name="report", tooltip="What was captured and what it cost."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # so that the host shows the report again when the result comes from its cache
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        steps: int,
        recorded_steps: int,
        seeds: int,
        seed: int,
        cfg: float,
        width: int,
        height: int,
        sampler_name: str,
        scheduler: str,
        batch_size: int,
        experimental: bool,
        prompts: Any = None,
    ) -> io.NodeOutput:
        sockets.connected(cls, prompts=prompts)
        sites.check_experimental(model, sites.attention_sites(model), experimental)
        trajectory = sampling.Trajectory(
            steps, recorded_steps, seeds, seed, cfg, width, height, sampler_name, scheduler, batch_size
        )
        cost = f"{trajectory.evaluations(len(prompts.pairs))} runs of the MODEL"
        what = f"{len(prompts.pairs)} prompts to {LISTED[prompts.role]} x {seeds} seeds x {recorded_steps} steps"
        reporting.show(f"Capturing {what}: {cost}\n{shortened(prompts.concepts, 3)}", cls.hidden.unique_id)
        activations = recording.capture(model, clip, prompts, trajectory)
        report = (
            f"Captured {what} in {len(activations.moments)} attention layers: {activations.count} recordings in each, "
            f"{cost}.\nConcepts: {', '.join(prompts.concepts)}"
        )
        return io.NodeOutput(activations, report, ui=reporting.report(report))
