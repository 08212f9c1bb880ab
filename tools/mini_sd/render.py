"""Draws batches of scenes of the toy world with signed distance functions, on any torch device."""

from __future__ import annotations

import math

import torch

from .world import BACKGROUNDS, COLORS, EYES, MARKS, SHAPES, STYLES, TOPPERS, Scene

SIZE = 64
SHAPE_IDS, COLOR_IDS = list(SHAPES), list(COLORS)
TOP_IDS, MARK_IDS, EYE_IDS = list(TOPPERS), list(MARKS), list(EYES)
BG_IDS, STYLE_IDS = list(BACKGROUNDS), list(STYLES)


def encode(scenes: list[Scene]) -> torch.Tensor:
    """Scenes as integer rows (B, 8): is it a creature, background, style, topper, mark, eyes, shape, color."""
    rows = []
    for s in scenes:
        ground = [BG_IDS.index(s.background), STYLE_IDS.index(s.style)]
        if s.kind == "shapes":
            shape, color = s.shapes[0]
            rows.append([0, *ground, 0, 0, 0, SHAPE_IDS.index(shape), COLOR_IDS.index(color)])
        else:
            c = s.creature
            rows.append(
                [
                    1,
                    *ground,
                    TOP_IDS.index(c.topper),
                    MARK_IDS.index(c.mark),
                    EYE_IDS.index(c.eyes),
                    SHAPE_IDS.index(c.shape),
                    COLOR_IDS.index(c.color),
                ]
            )
    return torch.tensor(rows, dtype=torch.int16)


def render(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, SIZE, SIZE) in 0..1 from encoded scenes (B, 8); pose and shade vary with the generator."""
    rows = rows.long()
    device, b = rows.device, rows.shape[0]

    def rand(lo, hi):
        return torch.rand(b, 1, 1, device=device, generator=generator) * (hi - lo) + lo

    grid = (torch.arange(SIZE, device=device) + 0.5) / SIZE * 2 - 1
    gx, gy = grid.view(1, 1, -1).expand(b, SIZE, SIZE), -grid.view(1, -1, 1).expand(b, SIZE, SIZE)
    alive, ground, style, topper, mark, eyes, shape, color = rows.unbind(1)

    def is_(t, name, ids):
        return (t == ids.index(name)).view(-1, 1, 1)

    def rgb(*v):
        return torch.tensor(v, device=device)

    dark, white = rgb(0.08, 0.06, 0.08), rgb(0.98, 0.98, 0.96)
    creature = (alive == 1).view(-1, 1, 1)
    image = _background(ground, gx, gy, rand)

    def paint(distance, color, where):
        """Blends a colour in where the distance is negative, with an edge one pixel wide."""
        nonlocal image
        alpha = (torch.clamp(0.5 - distance * SIZE / 2, 0, 1) * where).unsqueeze(1)
        color = color.view(-1, 3, 1, 1) if color.dim() > 1 else color.view(1, 3, 1, 1)
        image = image * (1 - alpha) + color * alpha

    size = torch.where(creature, rand(0.60, 0.65), rand(0.60, 0.76))
    cx, cy = rand(-0.10, 0.10), torch.where(creature, rand(-0.32, -0.26), rand(-0.10, 0.10))
    tilt = rand(-0.06, 0.06)
    dx, dy = gx - cx, gy - cy
    x, y = (dx * torch.cos(tilt) + dy * torch.sin(tilt)) / size, (-dx * torch.sin(tilt) + dy * torch.cos(tilt)) / size
    shade = (
        torch.tensor([COLORS[c][0] for c in COLOR_IDS], device=device)[color] * (0.94 + 0.10 * rand(0, 1).view(-1, 1))
    ).clamp(0, 1)

    ears = torch.minimum(_tri(x - 0.52, y - 0.70, 0.30, 0.80), _tri(x + 0.52, y - 0.70, 0.30, 0.80)) * size
    has = creature & is_(topper, "ears", TOP_IDS)
    paint(ears - 0.035, dark, has)
    paint(ears, shade, has)
    has = creature & is_(topper, "antenna", TOP_IDS)
    paint(_box(x, y - 1.05, 0.06, 0.35) * size, dark, has)
    paint((torch.hypot(x, y - 1.45) - 0.22) * size, rgb(0.90, 0.12, 0.12), has)
    body = _shape(shape, x, y)
    everywhere = torch.ones_like(creature)
    paint(body * size - 0.035, dark, everywhere)
    paint(body * size, shade, everywhere)
    inside = body < 0
    has = creature & is_(mark, "belly", MARK_IDS) & inside
    paint((torch.hypot(x / 0.9, (y + 0.50) / 0.7) - 0.46) * size, white, has)
    cheeks = torch.minimum(torch.hypot(x - 0.46, y + 0.22), torch.hypot(x + 0.46, y + 0.22)) - 0.20
    has = creature & is_(mark, "cheeks", MARK_IDS)
    paint((cheeks - 0.05) * size, white, has)
    paint(cheeks * size, rgb(0.92, 0.10, 0.10), has)
    pair = torch.minimum(torch.hypot(x - 0.28, y - 0.20), torch.hypot(x + 0.28, y - 0.20))
    has = creature & is_(eyes, "two", EYE_IDS)
    paint((pair - 0.20) * size, white, has)
    paint((pair - 0.12) * size, dark, has)
    middle = torch.hypot(x, y - 0.16)
    has = creature & is_(eyes, "one", EYE_IDS)
    paint((middle - 0.36) * size, white, has)
    paint((middle - 0.20) * size, dark, has)
    spikes = torch.minimum(
        torch.minimum(_tri(x, y - 0.86, 0.20, 0.60), _tri(x - 0.40, y - 0.86, 0.20, 0.50)),
        _tri(x + 0.40, y - 0.86, 0.20, 0.50),
    )
    crown = torch.minimum(_box(x, y - 0.88, 0.60, 0.16), spikes) * size
    has = creature & is_(topper, "crown", TOP_IDS)
    paint(crown - 0.035, dark, has)
    paint(crown, rgb(0.99, 0.80, 0.10), has)
    hat = torch.minimum(_box(x, y - 1.20, 0.38, 0.40), _box(x, y - 0.82, 0.72, 0.10)) * size
    paint(hat, rgb(0.05, 0.05, 0.07), creature & is_(topper, "hat", TOP_IDS))
    return _stylise(image.clamp(0, 1), style).clamp(0, 1)


def _box(x, y, w, h):
    dx, dy = x.abs() - w, y.abs() - h
    return torch.clamp(dx, min=0).hypot(torch.clamp(dy, min=0)) + torch.clamp(torch.maximum(dx, dy), max=0)


def _tri(x, y, half, height):
    """An upright triangle with its base at y = 0."""
    return torch.maximum((x.abs() * height + y * half - half * height) / math.hypot(half, height), -y)


def _star(x, y, points=5, inner=0.46):
    step = math.pi / points
    angle = torch.remainder(torch.atan2(x, y) + step, 2 * step) - step
    radius = x.hypot(y)
    px, py = radius * torch.sin(angle.abs()), radius * torch.cos(angle)
    ex, ey = inner * math.sin(step), inner * math.cos(step) - 1
    return ((py - 1) * ex - px * ey) / math.hypot(ex, ey)


def _shape(ids, x, y):
    """Signed distance (negative inside), unit size, y up, of each sample's shape."""
    radius, a, hx, hy = x.hypot(y), 0.78, x.abs(), y + 0.12
    distance = {
        "circle": radius - 0.92,
        "square": _box(x, y, 0.80, 0.80),
        "triangle": torch.maximum(0.866 * x.abs() + 0.5 * y - 0.56, -y - 0.80),
        "star": _star(x * 0.92, y * 0.92),
        "heart": torch.minimum((hx + hy.abs() - a) / 1.414, torch.hypot(hx - a / 2, hy - a / 2) - a / 1.414),
        "flower": radius - (0.72 + 0.24 * torch.cos(5 * torch.atan2(x, y))),
    }
    out = torch.empty_like(x)
    for i, name in enumerate(SHAPE_IDS):
        out = torch.where((ids == i).view(-1, 1, 1), distance[name], out)
    return out


def _background(ids, gx, gy, rand):
    def mix(low, high):
        low, high = (torch.tensor(v, device=gx.device).view(1, 3, 1, 1) for v in (low, high))
        return low + (high - low) * ((gy + 1) / 2).unsqueeze(1)

    hill = -0.20 + 0.08 * torch.sin(gx * 2.2 + rand(0, 6.28))
    grounds = {
        "plain": mix((0.96, 0.96, 0.94), (0.92, 0.92, 0.94)),
        "night": mix((0.16, 0.14, 0.44), (0.03, 0.03, 0.14)),
        "grass": torch.where(
            (gy < hill).unsqueeze(1),
            mix((0.34, 0.64, 0.22), (0.50, 0.78, 0.30)),
            mix((0.75, 0.88, 0.98), (0.55, 0.75, 0.96)),
        ),
        "sunset": mix((0.98, 0.66, 0.30), (0.46, 0.22, 0.52)),
    }
    image = torch.empty_like(grounds["plain"])
    for i, name in enumerate(BG_IDS):
        image = torch.where((ids == i).view(-1, 1, 1, 1), grounds[name], image)
    return image.clamp(0, 1)


def _stylise(image, ids):
    luma = (image * torch.tensor([0.3, 0.59, 0.11], device=image.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    styles = {
        "none": image,
        "mono": luma.expand_as(image),
        "sepia": 0.15 + 0.80 * luma * torch.tensor([1.0, 0.80, 0.55], device=image.device).view(1, 3, 1, 1),
        "negative": 1 - image,
    }
    out = torch.empty_like(image)
    for i, name in enumerate(STYLE_IDS):
        out = torch.where((ids == i).view(-1, 1, 1, 1), styles[name], out)
    return out
