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
    """At most two lines that fit; what does not is cut with an ellipsis."""
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font(size).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:2]
    if len(lines) > 2 or font(size).getlength(kept[-1]) > width:
        while kept[-1] and font(size).getlength(kept[-1] + "…") > width:
            kept[-1] = kept[-1][:-1]
        kept[-1] += "…"
    return kept
