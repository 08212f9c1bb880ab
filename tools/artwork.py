"""Draws the pack's icon and banner: eight things, and the outline of the ninth.

python tools/artwork.py          # docs/icon.png (400 x 400), docs/banner.png (1260 x 540)
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).resolve().parent.parent / "docs"
SCALE = 4  # drawn larger, then reduced: smooth edges
GROUND, OUTLINE, WORDS = (24, 28, 40), (150, 158, 178), (238, 240, 246)
COLOURS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (120, 140, 255),
)  # Okabe and Ito, told apart by everyone
SIDES = (40, 4, 3, 5, 6, 40, 4, 5)  # 40: a circle


def polygon(x: float, y: float, r: float, sides: int, star: bool = False) -> list[tuple[float, float]]:
    """Corners around (x, y), the first one on top."""
    count = 2 * sides if star else sides
    return [
        (
            x + r * (0.5 if star and i % 2 else 1) * math.sin(2 * math.pi * i / count),
            y - r * (0.5 if star and i % 2 else 1) * math.cos(2 * math.pi * i / count),
        )
        for i in range(count)
    ]


def grid(draw: ImageDraw.ImageDraw, left: float, top: float, size: float) -> None:
    """Three by three things; the middle one is erased."""
    cell, stars = size / 3, (False, False, False, True, False, False, False, False)
    shapes = iter(zip(COLOURS, SIDES, stars, strict=True))
    for i in range(9):
        x, y, r = left + cell * (i % 3 + 0.5), top + cell * (i // 3 + 0.5), cell * 0.36
        if i != 4:
            colour, sides, star = next(shapes)
            draw.polygon(polygon(x, y, r, sides, star), fill=colour)
            continue
        for k in range(0, 24, 2):  # a dashed circle
            draw.arc([x - r, y - r, x + r, y + r], 15 * k, 15 * k + 15, fill=OUTLINE, width=round(cell * 0.05))


def canvas(width: int, height: int, corner: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (width * SCALE, height * SCALE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle([0, 0, width * SCALE - 1, height * SCALE - 1], corner * SCALE, fill=GROUND)
    return image, draw


def icon() -> Image.Image:
    image, draw = canvas(400, 400, 64)
    grid(draw, 40 * SCALE, 40 * SCALE, 320 * SCALE)
    return image.resize((400, 400), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    image, draw = canvas(1260, 540, 0)
    grid(draw, 70 * SCALE, 70 * SCALE, 400 * SCALE)
    for text, size, y in (
        ("PURE", 130, 110),
        ("Concept Unlearning", 68, 265),
        ("one projection, no training", 40, 375),
    ):
        draw.text(
            (540 * SCALE, y * SCALE),
            text,
            fill=WORDS if size > 50 else OUTLINE,
            font=ImageFont.load_default(size * SCALE),
        )
    return image.convert("RGB").resize((1260, 540), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    icon().save(DOCS / "icon.png", optimize=True)
    banner().save(DOCS / "banner.png", optimize=True)
