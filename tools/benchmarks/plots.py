"""The two pictures of docs/evidence.md: erased against retained for every eraser, and what erased prompts draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from pure_pack.pure_core.charts import BLUE, GRID, INK, ORANGE, PAPER, font

from . import judging, tables
from mini_sd import studio
from mini_sd.world import CHARACTERS

SIZE, BOX = (1024, 680), (90, 40, 640, 600)


def tradeoff(scored: dict[str, list[dict[str, judging.Share]]], path: Path) -> None:
    """Erased (1 - mean of named, name-free and soup) over others retained.

    Numbered points, PURE as discs, the rest as squares.
    """
    image = Image.new("RGB", SIZE, PAPER)
    draw, (x0, y0, x1, y1) = ImageDraw.Draw(image), BOX
    for i in range(6):
        x, y = x0 + (x1 - x0) * i / 5, y1 - (y1 - y0) * i / 5
        draw.line([(x, y0), (x, y1)], fill=GRID)
        draw.line([(x0, y), (x1, y)], fill=GRID)
        draw.text((x, y1 + 10), f"{i / 5:.1f}", fill=INK, font=font(19), anchor="mt")
        draw.text((x0 - 10, y), f"{i / 5:.1f}", fill=INK, font=font(19), anchor="rm")
    draw.text(((x0 + x1) / 2, y1 + 40), "other characters retained", fill=INK, font=font(22), anchor="mt")
    draw.text((x0, y0 - 12), "erased: 1 - mean of named, name-free, attacks", fill=INK, font=font(22), anchor="lb")
    for i, (label, part) in enumerate(scored.items()):
        erased = 1 - judging.mean(
            [tables.pooled(part, g).value for g in ("named", "name_free", "soup") if any(g in s for s in part)]
        )
        x, y = x0 + (x1 - x0) * tables.pooled(part, "others").value, y1 - (y1 - y0) * erased
        shape, color = (draw.ellipse, BLUE) if label.startswith("PURE") else (draw.rectangle, ORANGE)
        shape([x - 7, y - 7, x + 7, y + 7], fill=color, outline=PAPER)
        draw.text((x + 10, y - 4), str(i + 1), fill=INK, font=font(18), anchor="lb")
        words = f"{i + 1} {label}"
        draw.text((x1 + 24, y0 + 36 * i), words if len(words) < 36 else words[:35] + "…", fill=INK, font=font(18))
    image.save(path)


def sheet(edits: dict[str, judging.Weights], path: Path) -> None:
    """Per character a row of four pairs: named, named, described, and another character.

    Before on the left, after on the right.
    """
    names, rows = list(CHARACTERS), []
    sets = studio.prompts()["test"]
    for i, name in enumerate(names):
        other = names[(i + 1) % len(names)]
        entries = [*sets["named"][name][:2], sets["name_free"][name][0], sets["named"][other][0]]
        texts, seeds = [e["prompt"] for e in entries], [e["seed"] for e in entries]
        pairs = [
            p
            for both in zip(
                studio.draw(judging.unedited(), texts, seeds),
                studio.draw(studio.unet(edits[name]), texts, seeds),
                strict=True,
            )
            for p in both
        ]
        rows.append(torch.cat(pairs, 2))
    picture = (torch.cat(rows, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    drawn = Image.fromarray(picture).resize((picture.shape[1] * 3 // 2, picture.shape[0] * 3 // 2), Image.LANCZOS)
    out = Image.new("RGB", (drawn.width + 110, drawn.height + 30), PAPER)
    out.paste(drawn, (110, 30))
    draw, cell = ImageDraw.Draw(out), drawn.height // len(names)
    for i, title in enumerate(("named", "named", "described", "another")):
        draw.text((110 + cell * (2 * i + 1), 6), f"{title}: before, after", fill=INK, font=font(15), anchor="mt")
    for i, name in enumerate(names):
        draw.text((10, 30 + cell * i + cell // 2), name, fill=INK, font=font(20), anchor="lm")
    out.save(path)
