"""Trains the judge of attributes, which tells colour, shape and parts apart where the other judge knows whole
characters only.

    python -m mini_sd.train_attributes [--steps 3000] [--out DIR]        (in tools/; under an hour on two busy CPU
    cores)

It sees drawings of this world, half of them as the autoencoder redraws them. Colour is not asked for under the styles
that have none (mono, sepia).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .narrow import WEIGHTS, AttributeJudge
from .render import STYLE_IDS, encode, render
from .studio import ATTRIBUTES, vae_decoder, vae_encoder
from .train import cosine
from .world import BACKGROUNDS, COLORS, EYES, MARKS, SHAPES, STYLES, TOPPERS, Creature, Scene

COLUMNS = {"kind": 0, "topper": 3, "mark": 4, "eyes": 5, "shape": 6, "color": 7}  # of render.encode's rows
COLORLESS = ("mono", "sepia")


def scenes(rng: random.Random, count: int) -> torch.Tensor:
    """Encoded scenes with every attribute drawn evenly.

    Two creatures in three, one plain shape in three, half without a style.
    """
    pick, out = rng.choice, []
    for _ in range(count):
        look = (pick(list(SHAPES)), pick(list(COLORS)))
        ground, style = pick(list(BACKGROUNDS)), "none" if rng.random() < 0.5 else pick(list(STYLES))
        if rng.random() < 2 / 3:
            out.append(
                Scene(
                    "creature",
                    None,
                    Creature(*look, pick(list(TOPPERS)), pick(list(MARKS)), pick(list(EYES))),
                    background=ground,
                    style=style,
                )
            )
        else:
            out.append(Scene("shapes", None, None, [look], ground, style))
    return encode(out)


def loss_of(got: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies of what a scene has: parts of creatures only, colour where the style leaves one."""
    total = torch.zeros(())
    creature = rows[:, 0] == 1
    colored = ~torch.isin(rows[:, 2], torch.tensor([STYLE_IDS.index(s) for s in COLORLESS]))
    for name, column in COLUMNS.items():
        asked = (
            creature
            if name in ("topper", "mark", "eyes")
            else colored
            if name == "color"
            else torch.ones_like(creature)
        )
        total = total + F.cross_entropy(got[name][asked], rows[asked, column].long(), label_smoothing=0.02)
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    judge = AttributeJudge({name: len(values) for name, values in ATTRIBUTES.items()})
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    encoder, decoder = vae_encoder(), vae_decoder()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step / options.steps, 2e-3)
        rows = scenes(rng, 128)
        pictures = render(rows, generator)
        with torch.no_grad():
            z = encoder(pictures[:64])
            redrawn = decoder(
                z + torch.randn(z.shape, generator=generator) * 0.25 * torch.rand(64, 1, 1, 1, generator=generator)
            ).clamp(0, 1)
            pictures = torch.cat([redrawn, pictures[64:]])
            pictures = (pictures + torch.randn(pictures.shape, generator=generator) * 0.03).clamp(0, 1)
        loss = loss_of(judge(pictures), rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 200 == 0 or step == options.steps - 1:
            print(f"{step} loss {loss:.3f}", flush=True)
    save_file(
        {
            k: v.detach().half().contiguous() if v.is_floating_point() else v.contiguous()
            for k, v in judge.eval().state_dict().items()
        },
        options.out / "attributes.safetensors",
    )


if __name__ == "__main__":
    main()
