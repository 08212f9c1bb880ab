"""Pictures before and after an edit, side by side."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from .charts import INK, PAPER, font, pixels

MARGIN = 8


def comparison_grid(before: torch.Tensor, after: torch.Tensor, prompts: list[str], columns: int) -> torch.Tensor:
    """(1, H, W, 3) float32: per prompt the picture before above the picture after, its text below; `columns` prompts a
    row.

    before, after: (n, h, w, 3) in 0..1. Small pictures are enlarged by a whole factor without smoothing, so that text
    has room.
    """
    n, height, width, _ = before.shape
    factor = max(1, -(-256 // width))
    cell_w, cell_h, text = width * factor, height * factor, max(20, width * factor // 20)
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    caption = 2 * (text + 6)
    label = int(font(text).getlength("before")) + 2 * MARGIN
    row_h = 2 * cell_h + caption + 2 * MARGIN
    image = Image.new("RGB", (label + columns * (cell_w + MARGIN) + MARGIN, rows * row_h + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    for i, prompt in enumerate(prompts):
        x, y = label + (i % columns) * (cell_w + MARGIN), MARGIN + (i // columns) * row_h
        for k, pictures in enumerate((before, after)):
            picture = Image.fromarray((pictures[i].clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8))
            image.paste(picture.resize((cell_w, cell_h), Image.Resampling.NEAREST), (x, y + k * (cell_h + MARGIN)))
            if i % columns == 0:
                draw.text(
                    (MARGIN, y + k * (cell_h + MARGIN) + cell_h // 2),
                    ("before", "after")[k],
                    fill=INK,
                    font=font(text),
                    anchor="lm",
                )
        for line, part in enumerate(_wrap(prompt or "(empty prompt)", cell_w, text)):
            draw.text((x, y + 2 * cell_h + MARGIN + 4 + line * (text + 4)), part, fill=INK, font=font(text))
    return pixels(image)


def _wrap(text: str, width: int, size: int) -> list[str]:
    """At most two lines that fit; a word that does not is broken, and what is left over is cut with an ellipsis.

    A text of several lines keeps the first two, each cut by itself.
    """
    if "\n" in text:
        return [_cut(line, width, size) for line in text.splitlines()[:2]]
    lines: list[str] = []
    rest = " ".join(text[: 4 * width].split())  # no character is narrower than half a pixel
    while rest and len(lines) < 2:
        count = _fitting(rest, width, size)
        space = rest.rfind(" ", 0, count + 1)
        end = count if count == len(rest) or space <= 0 else space
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest:
        lines[-1] = _cut(lines[-1] + "…", width, size)
    return lines


def _cut(text: str, width: int, size: int) -> str:
    """The text, or as much of its beginning as fits with an ellipsis."""
    while font(size).getlength(text) > width and len(text) > 1:
        text = text[: max(_fitting(text, width, size) - 2, 0)] + "…"
    return text


def _fitting(text: str, width: int, size: int) -> int:
    """How many of its first characters fit into a width, at least one; by bisection, since measuring costs."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font(size).getlength(text[:middle]) <= width else (low, middle - 1)
    return low
