"""PURE_CompareImages."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pure_core.basis import check_offered
from ..pure_core.errors import PureError
from ..pure_core.grid import comparison_grid
from ..pure_core.prompts import read_lines
from . import sockets
from .host import reporting, sampling
from .host.drawing import draw_pairs


class CompareImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_CompareImages",
            display_name="PURE Compare Images",
            category=sockets.CATEGORY,
            **sockets.found_as("before after", "side by side", "grid"),
            description="Draws the same prompts with the same seed by two MODELs and lays the pictures side by side.",
            inputs=[
                io.Model.Input("original", tooltip="The MODEL before the edit."),
                io.Model.Input("edited", tooltip="The MODEL after it."),
                io.Clip.Input("clip", tooltip="The CLIP of the checkpoint."),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    placeholder="one prompt per line",
                    tooltip="What to draw, one prompt per line: one picture before and one after for each.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="The negative prompt of both."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of every picture: KSampler with this seed gives the same.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="As in KSampler."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="As in KSampler."),
                io.Combo.Input(
                    "sampler_name", options=sampling.all_samplers(), default="euler", tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=sampling.offered_schedulers(), default="normal", tooltip="As in KSampler."
                ),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Of the pictures."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Of the pictures."),
                io.Int.Input("columns", default=4, min=1, max=64, tooltip="Prompts per row of the grid."),
                io.Int.Input(
                    "seeds",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many seeds, counted up from seed: that many pairs of each.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="Before above after, with the prompt below."),
                io.Image.Output(display_name="before", tooltip="The original MODEL's pictures."),
                io.Image.Output(display_name="after", tooltip="The edited MODEL's pictures."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        original: Any,
        edited: Any,
        clip: Any,
        vae: Any,
        prompts: str,
        negative: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        columns: int,
        seeds: int = 1,
    ) -> io.NodeOutput:
        check_offered("sampler_name", sampler_name, sampling.all_samplers())
        check_offered("scheduler", scheduler, sampling.offered_schedulers())
        texts = read_lines(prompts).lines
        if not texts:
            raise PureError("The prompts box is empty. Write there what to draw, one prompt per line.")
        evaluations = sampling.guided(2 * len(texts) * seeds * steps, cfg)
        cost = f"{evaluations} runs of a MODEL (more with samplers that run it twice a step)"
        doing = f"Drawing {len(texts)} prompts with each MODEL, {steps} steps each: {cost}"
        reporting.show(doing, cls.hidden.unique_id)
        drawn = (negative, steps, cfg, sampler_name, scheduler, width, height)
        asked = [(text, seed + i) for text in texts for i in range(seeds)]
        before, after = draw_pairs(original, edited, clip, vae, asked, *drawn)
        grid = comparison_grid(before, after, [text for text, _ in asked], columns)
        told = f"seed {seed}" if seeds == 1 else f"seeds {seed} to {seed + seeds - 1}"
        done = f"{len(texts)} prompts, {told}: before above after; {cost}."
        return io.NodeOutput(grid, before, after, ui=reporting.report(done, (), grid, cls))
