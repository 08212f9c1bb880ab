"""Numbers -> pixels: deterministic, readable at 512 px, told apart without colour."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .basis import ConceptBasis
from .build import shortened
from .leakage import Measured
from .rules import RULES

INK, GRID, PAPER = (30, 30, 30), (205, 205, 205), (255, 255, 255)
BLUE, ORANGE = (0, 90, 181), (230, 140, 30)  # apart for every common kind of colour blindness, and in lightness
GOES = (255, 241, 222)  # behind what an edit takes away
SIZE = (1024, 640)
LARGE, SMALL = 26, 19  # px: at half size, on a node, still 13 and 9
DISC = " (disc: last one used)"
Box = tuple[int, int, int, int]


def basis_chart(basis: ConceptBasis) -> torch.Tensor:
    """(1, H, W, 3) float32 picture of a basis: its spectra, and for the energy rule ranks and overlaps per layer."""
    rule, edits, names = RULES[basis.rule], list(basis.sites.values()), list(basis.sites)
    image, draw = _canvas(
        rule.CHART.title.format(shortened(basis.recipe.forget.concepts, 1) if basis.recipe else basis.concepts)
    )
    if rule.CHART.bar is None:
        _spectra(draw, basis, (110, 120, 1000, 560))
        return pixels(image)
    _spectra(draw, basis, (70, 120, 470, 580))
    ranks: list[tuple[float, ...]] = [(b.rank, b.v_r.shape[1]) if b.v_r.shape[1] else (b.rank,) for b in edits]
    _bars(draw, names, ranks, (600, 120, 790, 580), rule.CHART.ranks, "{:.0f}", labels=True)
    bars: list[tuple[float, ...]] = [(rule.CHART.bar(b),) for b in edits]
    _bars(draw, names, bars, (820, 120, 1000, 580), rule.CHART.bars, rule.CHART.form, top=rule.CHART.top)
    return pixels(image)


def leakage_chart(measured: Measured) -> torch.Tensor:
    """(1, H, W, 3) float32 picture: per layer what is left of the concept and how far what is kept has moved."""
    sites, names = measured.sites.values(), list(measured.sites)
    title = f"{', '.join(measured.concepts)}: {measured.leakage:.2f} left, what is kept moved {measured.movement:.2f}"
    image, draw = _canvas(title)
    left: list[tuple[float, ...]] = [(v.leakage,) for v in sites]
    top = max(1.0, *(v.leakage for v in sites))
    box, words = (150, 120, 560, 580), "left of the concept (1: all, 0: nothing)"
    _bars(draw, names, left, box, words, "{:.2f}", top=top, labels=True, mark=1.0)
    moved: list[tuple[float, ...]] = [(v.movement,) for v in sites]
    top = max(0.2, *(v.movement for v in sites))
    _bars(draw, names, moved, (620, 120, 1000, 580), "kept: moved (0: not at all)", "{:.2f}", top=top, color=ORANGE)
    return pixels(image)


def pixels(image: Image.Image) -> torch.Tensor:
    """(1, H, W, 3) float32 in 0..1, ComfyUI's IMAGE."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, the same on every machine."""
    return ImageFont.load_default(size)


def short(text: str, limit: int) -> str:
    """The text, cut to so many characters with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def short_site(site: str) -> str:
    """A short name of a site: in 4.1, mid 1, out 3.1 (and the block's number where there are several)."""
    for block, name in (("input_blocks", "in"), ("output_blocks", "out"), ("middle_block", "mid")):
        site = site.replace(block, name)
    parts = site.split(".")
    numbers = [p for p in parts[1:] if p.isdigit()]
    return f"{parts[0]} {'.'.join(numbers)}"


def _canvas(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((20, 16), short(title, 72), fill=INK, font=font(LARGE))
    return image, draw


def _spectra(draw: ImageDraw.ImageDraw, basis: ConceptBasis, box: Box) -> None:
    """A line per layer on logarithmic axes, with a disc at its kept rank (of a whole layer: heads have each their own).

    Energy rule: singular values of the forget rows over the largest one, the retain rows' as dots. Contrast rule: how
    many times stronger forget is than retain in each direction, and a line at the retain weight, where half goes.
    """
    x0, y0, x1, y1 = box
    rule, edits = RULES[basis.rule], basis.sites.values()
    scales = [rule.spectrum_scale(b) for b in edits]
    low, high = rule.CHART.lowest, max(0, *(math.ceil(math.log10(scale)) for scale in scales))
    high = max(high, low + 3)
    longest = max([2, *(len(s) for b in edits for s in (b.spectrum_forget, b.spectrum_retain))])

    def px(i: float) -> float:
        return x0 + (x1 - x0) * math.log(i) / math.log(longest)

    def py(v: float) -> float:
        return y1 - (y1 - y0) * (math.log10(max(v, 10.0**low)) - low) / (high - low)

    weight = basis.recipe.settings.keep_weight if basis.recipe and rule.WEIGHS else 0.0
    parted = 10.0**low < weight < 10.0**high
    if parted:
        draw.rectangle([x0, y0, x1, py(weight)], fill=GOES)
    for power in range(high, low - 1, -max(1, (high - low) // 3)):
        draw.line([(x0, py(10.0**power)), (x1, py(10.0**power))], fill=GRID)
        label = f"{10.0**power:,g}{rule.CHART.times}" if rule.CHART.times else f"1e{power}" if power else "1"
        draw.text((x0 - 10, py(10.0**power)), label, fill=INK, font=font(SMALL), anchor="rm")
    for i in [n for n in (1, 10, 100, 1000) if n <= longest]:
        draw.line([(px(i), y0), (px(i), y1)], fill=GRID)
        draw.text((px(i), y1 + 8), str(i), fill=INK, font=font(SMALL), anchor="mt")
    for b in edits:
        for i, v in enumerate(b.spectrum_retain.tolist()):
            if i % max(1, i // 6) == 0:
                draw.rectangle([px(i + 1) - 2, py(v) - 2, px(i + 1) + 2, py(v) + 2], fill=ORANGE)
    discs = []
    for b, scale in zip(edits, scales, strict=True):
        points = [
            (px(i + 1), py(v * scale))
            for i, v in enumerate(b.spectrum_forget.tolist())
            if i < b.rank or v * scale > 10.0**low
        ]
        if len(points) > 1:
            draw.line(points, fill=BLUE, width=2)
        if basis.structure == "whole layer" and 0 < b.rank <= len(points):
            discs.append(points[b.rank - 1])
    if parted:
        draw.line([(x0, py(weight)), (x1, py(weight))], fill=ORANGE, width=2)
        for words, y, anchor in (
            (f"above keep_weight ({weight:g}): most of it goes", py(weight) - 8, "rb"),
            ("below: most of it stays", py(weight) + 8, "rt"),
        ):
            draw.text((x1 - 8, y), words, fill=INK, font=font(SMALL), anchor=anchor)
    for x, y in discs:
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], outline=PAPER, fill=INK)
    draw.text(((x0 + x1) / 2, y1 + 36), rule.CHART.parts, fill=INK, font=font(SMALL), anchor="mt")
    draw.text((20, 74), rule.CHART.spectrum + (DISC if discs else ""), fill=INK, font=font(SMALL))


def _bars(
    draw: ImageDraw.ImageDraw,
    names: list[str],
    rows: list[tuple[float, ...]],
    box: Box,
    title: str,
    form: str,
    top: float | None = None,
    labels: bool = False,
    color: tuple[int, int, int] = BLUE,
    mark: float | None = None,
) -> None:
    """A row per layer with one bar, or two (the second thinner, below, in the other colour), and the first's number
    where there is room."""
    x0, y0, x1, y1 = box
    top = top or max([1e-9, *(v for row in rows for v in row)])
    height = (y1 - y0) / max(len(rows), 1)
    every = max(1, int(np.ceil((SMALL + 2) / height)))  # so that text never overlaps
    draw.text((x0, 74), title, fill=INK, font=font(SMALL))
    room = 62 if every == 1 else 0

    def px(v: float) -> float:
        return x0 + (x1 - x0 - room) * min(v / top, 1.0)

    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = y0 + i * height
        if labels and i % every == 0:
            draw.text((x0 - 10, y + height / 2), short(short_site(name), 12), fill=INK, font=font(SMALL), anchor="rm")
        split = 0.58 if len(row) > 1 else 0.88
        for k, value in enumerate(row):
            span = (0.12, split) if k == 0 else (split + 0.04, 0.88)
            if value > 0:
                draw.rectangle(
                    [x0, y + height * span[0], max(px(value), x0 + 1), y + height * span[1]],
                    fill=color if k == 0 else ORANGE,
                )
        if room:
            draw.text(
                (px(row[0]) + 6, y + height * (0.12 + split) / 2),
                form.format(row[0]),
                fill=INK,
                font=font(SMALL),
                anchor="lm",
            )
    draw.line([(x0, y0), (x0, y1)], fill=INK)
    if mark is not None:
        draw.line([(px(mark), y0), (px(mark), y1)], fill=INK)
    if not room:
        draw.text((px(top), y1 + 8), form.format(top), fill=INK, font=font(SMALL), anchor="rt")
