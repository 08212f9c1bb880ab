"""Trains the picture tower of clip.py and the text's projection, contrastively, on drawings of this world.

    python -m mini_sd.train_clip [--steps 2000] [--scenes 8000] [--out DIR]     (in tools/; under an hour on two cores)

The text encoder stays as the miniature Stable Diffusion has it. "a picture" and its like fit whatever is no named
character.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .clip import FILE, picture_tower, pixels, pooled
from .narrow import TEXT
from .render import encode, render
from .studio import ATTRIBUTES, vae_decoder, vae_encoder
from .train import cosine
from .train_attributes import loss_of
from .world import CHARACTERS, Scene, caption, sample_scene

CAPTIONS, BATCH = 3, 160
NEUTRAL = ("a picture", "an image", "a photo", "a drawing")
ALWAYS = (*CHARACTERS, *(f"a picture of {name}" for name in CHARACTERS), *NEUTRAL)  # texts of every batch


def subject(scene: Scene) -> str:
    """Equal for scenes of the same thing."""
    return scene.character or str(scene.creature or scene.shapes)


def fits(scenes: list[Scene], bare: list[bool]) -> torch.Tensor:
    """(B, B + ALWAYS) whether a text is true of a picture: captions of the same thing, and on the same ground and in
    the same style unless they are bare of both; then the texts of ALWAYS."""
    things = [subject(s) for s in scenes]
    whole = [(s.background, s.style) for s in scenes]
    rows = [
        [things[i] == things[j] and (bare[j] or whole[i] == whole[j]) for j in range(len(scenes))]
        + [text.split()[-1] == s.character for text in ALWAYS[: -len(NEUTRAL)]]
        + [s.character is None] * len(NEUTRAL)
        for i, s in enumerate(scenes)
    ]
    return torch.tensor(rows)


def contrast(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with all that is true of a picture (a row) as its target, over rows that have any."""
    has = true.any(1)
    target = true[has].float() / true[has].sum(1, keepdim=True)
    return -(target * logits[has].log_softmax(1)).sum(1).mean()


@torch.no_grad()
def drawings(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(n, 3, SIZE, SIZE) drawings of scenes, every second one as the autoencoder redraws it from a noisy latent."""
    encoder, decoder, out = vae_encoder(), vae_decoder(), []
    for start in range(0, len(rows), 64):
        drawn = render(rows[start : start + 64], generator)
        z = encoder(drawn[::2])
        z = z + torch.randn(z.shape, generator=generator) * 0.25 * torch.rand(len(z), 1, 1, 1, generator=generator)
        drawn[::2] = decoder(z).clamp(0, 1)
        out.append(drawn)
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=FILE.parent)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng, generator = random.Random("clip"), torch.Generator().manual_seed(0)
    scenes = [sample_scene(rng) for _ in range(options.scenes)]
    rows, bare = encode(scenes), [rng.random() < 0.4 for _ in scenes]
    plain = [Scene(s.kind, s.character, s.creature, s.shapes) if b else s for s, b in zip(scenes, bare, strict=True)]
    texts = [caption(s, rng) for s in plain for _ in range(CAPTIONS)]
    words = torch.cat([pooled(texts[i : i + 256]) for i in range(0, len(texts), 256)]).view(-1, CAPTIONS, TEXT)
    always = pooled(list(ALWAYS))
    tower, projection = picture_tower(), torch.nn.Linear(TEXT, TEXT, bias=False)
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(TEXT, len(values)) for name, values in ATTRIBUTES.items()})
    scale = torch.nn.Parameter(torch.tensor(2.66))
    parameters = [*tower.parameters(), *projection.parameters(), *heads.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2)
    pictures = drawings(rows, generator)
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step / options.steps, 1.5e-3)
        pick = torch.randperm(options.scenes)[:BATCH]
        own, shown = [scenes[i] for i in pick], pictures[pick]
        shown = (shown + torch.randn(shown.shape, generator=generator) * 0.03).clamp(0, 1)
        seen = tower(pixels(shown)).image_embeds
        said = projection(torch.cat([words[pick, torch.randint(CAPTIONS, (len(pick),))], always]).clone())
        logits = scale.clamp(max=4.6052).exp() * F.normalize(seen, dim=1) @ F.normalize(said, dim=1).T
        true = fits(own, [bare[i] for i in pick])
        parts = loss_of({name: head(seen) for name, head in heads.items()}, rows[pick])
        loss = contrast(logits, true) + contrast(logits.T, true.T) + 0.2 * parts
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == options.steps - 1:
            right = true.gather(1, logits.argmax(1, keepdim=True)).float().mean()
            print(f"{step} loss {loss:.3f} parts {parts:.3f} right {right:.3f} scale {scale.exp():.1f}", flush=True)
    state = {**tower.state_dict(), "text_projection.weight": projection.weight}
    state = {k: v.detach().half().contiguous() for k, v in state.items() if v.is_floating_point()}
    save_file(state, options.out / FILE.name)


if __name__ == "__main__":
    main()
