"""Numbers -> pixels: deterministic, readable at 512 px, told apart without colour."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .leakage import LayerLeakage, summary
from .projection import ConceptBasis

INK, GRID, PAPER = (30, 30, 30), (205, 205, 205), (255, 255, 255)
BLUE, ORANGE = (0, 90, 181), (230, 140, 30)  # apart for every common kind of colour blindness, and in lightness
SIZE = (1024, 640)
LARGE, SMALL = 26, 19  # px: at half size, on a node, still 13 and 9
Box = tuple[int, int, int, int]


def basis_chart(basis: ConceptBasis) -> torch.Tensor:
    """(1, H, W, 3) float32 picture of a basis: spectra with the kept ranks, rank per layer, and overlap of forget and
    retain.

    Overlap is, per layer, the mean cos^2 between the forget directions and the retain space (energy rule), or for the
    contrast rule how much stronger the concept's best direction is in the forget rows than in the retain rows.
    """
    energy = basis.rule == "energy"
    concepts = ", ".join(basis.provenance.get("forget", {}).get("concepts", [])) or "basis"
    image, draw = _canvas(f"{concepts}: {basis.rule} rule, {basis.structure}")
    _spectra(draw, basis, (70, 120, 470, 580))
    names = list(basis.layers)
    ranks: list[tuple[float, ...]] = [(b.rank, b.v_r.shape[1]) if energy else (b.rank,) for b in basis.layers.values()]
    _bars(
        draw, names, ranks, (600, 120, 790, 580), "rank" + (" (below: retain)" if energy else ""), "{:.0f}", labels=True
    )
    if energy:
        _bars(
            draw,
            names,
            [(1 - float(b.values.mean()) if b.rank else 1.0,) for b in basis.layers.values()],
            (820, 120, 1000, 580),
            "overlap (cos^2)",
            "{:.2f}",
            top=1.0,
        )
    else:
        _bars(
            draw,
            names,
            [(float(b.values.max()) if b.rank else 0.0,) for b in basis.layers.values()],
            (820, 120, 1000, 580),
            "best ratio",
            "{:.0f}",
        )
    return pixels(image)


def leakage_chart(layers: dict[str, LayerLeakage], concepts: tuple[str, ...]) -> torch.Tensor:
    """(1, H, W, 3) float32 picture: per layer what is left of the concept and how far retained activations moved."""
    left, moved = summary(layers)
    image, draw = _canvas(f"{', '.join(concepts)}: leakage {left:.3f}, retained moved {moved:.3f}")
    top = max(1.0, *(v.leakage for v in layers.values()))
    _bars(
        draw,
        list(layers),
        [(v.leakage,) for v in layers.values()],
        (150, 120, 560, 580),
        "leakage (1: unedited, 0: gone)",
        "{:.2f}",
        top=top,
        labels=True,
        mark=1.0,
    )
    moved_top = max(0.2, *(v.movement for v in layers.values()))
    _bars(
        draw,
        list(layers),
        [(v.movement,) for v in layers.values()],
        (620, 120, 1000, 580),
        "retained moved (0: not at all)",
        "{:.2f}",
        top=moved_top,
        color=ORANGE,
    )
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


def place(layer: str) -> str:
    """A short name of a layer: in 4.1, mid 1, out 3.1 (and the block's number where there are several)."""
    parts = (
        layer.replace("input_blocks", "in").replace("output_blocks", "out").replace("middle_block", "mid").split(".")
    )
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
    layers, contrast = basis.layers.values(), basis.rule == "contrast"
    scales = [float(b.values.max()) if contrast and b.rank else 1.0 for b in layers]
    low, high = (-2, max(1, int(np.ceil(np.log10(max(scales)))))) if contrast else (-6, 0)
    longest = max([2, *(len(s) for b in layers for s in (b.spectrum_forget, b.spectrum_retain))])

    def px(i: float) -> float:
        return x0 + (x1 - x0) * math.log(i) / math.log(longest)

    def py(v: float) -> float:
        return y1 - (y1 - y0) * (math.log10(max(v, 10.0**low)) - low) / (high - low)

    draw.text(
        (20, 74),
        "ratio forget / retain (disc: kept)" if contrast else "singular values: forget (lines), retain (dots)",
        fill=INK,
        font=font(SMALL),
    )
    for power in range(high, low - 1, -max(1, (high - low) // 3)):
        draw.line([(x0, py(10.0**power)), (x1, py(10.0**power))], fill=GRID)
        draw.text((x0 - 10, py(10.0**power)), f"1e{power}" if power else "1", fill=INK, font=font(SMALL), anchor="rm")
    for i in [n for n in (1, 10, 100, 1000) if n <= longest]:
        draw.line([(px(i), y0), (px(i), y1)], fill=GRID)
        draw.text((px(i), y1 + 8), str(i), fill=INK, font=font(SMALL), anchor="mt")
    for b in layers:
        for i, v in enumerate(b.spectrum_retain.tolist()):
            if i % max(1, i // 6) == 0:
                draw.rectangle([px(i + 1) - 2, py(v) - 2, px(i + 1) + 2, py(v) + 2], fill=ORANGE)
    discs = []
    for b, scale in zip(layers, scales, strict=True):
        points = [
            (px(i + 1), py(v * scale))
            for i, v in enumerate(b.spectrum_forget.tolist())
            if i < b.rank or v * scale > 10.0**low
        ]
        if len(points) > 1:
            draw.line(points, fill=BLUE, width=2)
        if basis.structure == "whole layer" and 0 < b.rank <= len(points):
            discs.append(points[b.rank - 1])
    weight = basis.settings.get("retain_weight", 0.0) if contrast else 0.0
    if 10.0**low < weight < 10.0**high:
        draw.line([(x0, py(weight)), (x1, py(weight))], fill=ORANGE, width=2)
        draw.text((x1, py(weight) - 4), "retain weight: half goes", fill=INK, font=font(SMALL), anchor="rb")
    for x, y in discs:
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], outline=PAPER, fill=INK)


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
            draw.text((x0 - 10, y + height / 2), short(place(name), 12), fill=INK, font=font(SMALL), anchor="rm")
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
