"""Numbers -> pixels: deterministic, readable at 512 px, told apart without colour."""
from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .projection import ConceptBasis

INK, GRID, PAPER = (30, 30, 30), (215, 215, 215), (255, 255, 255)
BLUE, ORANGE = (0, 90, 181), (220, 120, 0)  # apart for every common kind of colour blindness, and in lightness
SIZE = (768, 512)
FLOOR = 1e-6  # lowest share of the largest singular value that the spectrum shows


def basis_chart(basis: ConceptBasis) -> torch.Tensor:
    """(1, H, W, 3) float32 picture of a basis: on the left the spectra of all layers, on the right what each layer's edit is.

    The right side shows the ranks, and per layer the mean sin^2 between forget and retain space (energy rule) or the
    largest contrast ratio (contrast rule).
    """
    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    concepts = ", ".join(basis.provenance.get("forget", {}).get("concepts", [])) or "basis"
    draw.text((16, 10), _short(f"{concepts}: {basis.rule} rule, {basis.structure}", 70), fill=INK, font=_font(18))
    _spectra(draw, basis, (56, 70, 370, 470))
    _layers(draw, basis, (420, 70, 752, 470))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]


def _spectra(draw: ImageDraw.ImageDraw, basis: ConceptBasis, box: tuple[int, int, int, int]) -> None:
    """Singular values over the largest one, on logarithmic axes: forget solid with a dot at each kept rank, retain dashed."""
    x0, y0, x1, y1 = box
    longest = max([2, *(len(s) for b in basis.layers.values() for s in (b.spectrum_forget, b.spectrum_retain))])
    px = lambda i: x0 + (x1 - x0) * np.log(i) / np.log(longest)
    py = lambda v: y0 + (y1 - y0) * np.log10(max(v, FLOOR)) / np.log10(FLOOR)
    draw.text((x0, y0 - 26), "singular values: forget (line), retain (dots)", fill=INK, font=_font(13))
    for power in range(0, 7, 2):
        y = py(10.0**-power)
        draw.line([(x0, y), (x1, y)], fill=GRID)
        draw.text((x0 - 44, y - 8), f"1e-{power}" if power else "1", fill=INK, font=_font(13))
    for i in [n for n in (1, 10, 100, 1000) if n <= longest]:
        draw.line([(px(i), y0), (px(i), y1)], fill=GRID)
        draw.text((px(i) - 4, y1 + 4), str(i), fill=INK, font=_font(13))
    for b in basis.layers.values():
        points = [(px(i + 1), py(v)) for i, v in enumerate(b.spectrum_forget.tolist())]
        if len(points) > 1:
            draw.line(points, fill=BLUE, width=1)
        for i, v in enumerate(b.spectrum_retain.tolist()):
            if i % max(1, i // 6) == 0:
                draw.rectangle([px(i + 1) - 1, py(v) - 1, px(i + 1) + 1, py(v) + 1], fill=ORANGE)
        if basis.rule == "energy" and 0 < b.rank <= len(points):
            x, y = points[b.rank - 1]
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], outline=INK, fill=BLUE)


def _layers(draw: ImageDraw.ImageDraw, basis: ConceptBasis, box: tuple[int, int, int, int]) -> None:
    """A bar per layer with its rank beside it."""
    x0, y0, x1, y1 = box
    energy = basis.rule == "energy"
    values = [float(b.values.mean() if energy else b.values.max()) if b.rank else 0.0 for b in basis.layers.values()]
    draw.text((x0, y0 - 26), "removed share of forget space, rank" if energy else "contrast ratio forget / retain, rank", fill=INK, font=_font(13))
    top = 1.0 if energy else max([*values, 1e-9])
    row = (y1 - y0) / max(len(values), 1)
    name_width = 92
    for i, ((name, b), value) in enumerate(zip(basis.layers.items(), values)):
        y = y0 + i * row
        if row >= 11:
            draw.text((x0, y + row / 2 - 7), _short(place(name), 14), fill=INK, font=_font(12))
        draw.rectangle([x0 + name_width, y + row * 0.15, x0 + name_width + (x1 - x0 - name_width - 90) * value / top, y + row * 0.85], fill=BLUE if b.rank else GRID)
        if row >= 11:
            draw.text((x1 - 84, y + row / 2 - 7), f"{value:.2f}, r {b.rank}" if energy else f"{value:.0f}, r {b.rank}", fill=INK, font=_font(12))


def place(layer: str) -> str:
    """A short name of a layer: in 4.1, mid 1, out 3.1 (and the block's number where there are several)."""
    parts = layer.replace("input_blocks", "in").replace("output_blocks", "out").replace("middle_block", "mid").split(".")
    numbers = [p for p in parts[1:] if p.isdigit()]
    return f"{parts[0]} {'.'.join(numbers)}"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
