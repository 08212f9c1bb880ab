"""Does an erasure of one checkpoint carry over to its fine-tunes? The table of docs/tables/transfer.md.

    python -m benchmarks.transfer [--write]       (in tools/)

The miniature U-Net is tuned on pictures in one artist's style alone, as people tune a model to a look, for longer and
with larger steps. On each tune: no edit; a basis captured on the tune; the basis that was captured on the original; and
the original's LoRA. On `test` prompts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import inprocess

inprocess.start()  # before anything of comfy is imported

import torch
from pure_pack.nodes.apply import ApplyProjection
from pure_pack.nodes.host.identity import weights_identity
from pure_pack.nodes.host.sites import attention_sites
from pure_pack.pure_core.activations import weights_distance
from safetensors.torch import save_file

from benchmarks import judging, tables
from benchmarks.erasers import Eraser, character_plan, narrow, run
from mini_sd import studio
from mini_sd.layout import full_state
from mini_sd.narrow import load_unet_state
from mini_sd.train import CAPTIONS, make_data, make_part, to_latents

TARGETS = ("miplo", "zorbo", "bramby")
TUNES = ((30, 1e-4), (60, 3e-4), (80, 1e-3), (100, 3e-3))  # steps, and the length of each
GROUPS = ["named", "name_free", "others"]
STYLE, BATCH, SCENES = 2, 32, 3000  # the style's place among the judge's labels


def drawings() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and token ids of captions, of scenes in one style."""
    scenes = make_part((0, SCENES))
    images, labels, text = make_data(scenes, torch.device("cpu"))
    chosen = labels[:, 1] == STYLE
    with torch.no_grad():
        return to_latents(studio.vae_encoder(), images[chosen], torch.device("cpu")).clone(), text[chosen]


def tuned(latents: torch.Tensor, text: torch.Tensor, steps: int, peak: float) -> dict[str, torch.Tensor]:
    """The narrow U-Net's weights after so many steps of Adam on these drawings."""
    torch.manual_seed(0)
    net, encode = studio.unet().requires_grad_(True).train(), studio.text_encoder()[0]
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=0.0)
    alphas = 1 / (1 + studio.sigmas() ** 2)
    for _ in range(steps):
        pick, t = torch.randint(len(latents), (BATCH,)), torch.randint(1000, (BATCH,))
        noise, a = torch.randn(BATCH, *latents.shape[1:]), alphas[t].view(-1, 1, 1, 1)
        with torch.no_grad():
            context = encode(text[pick, torch.randint(CAPTIONS, (BATCH,))].long())
        eps = net(a.sqrt() * latents[pick] + (1 - a).sqrt() * noise, t, context)
        loss = (eps - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return {k: v.detach().half() for k, v in net.state_dict().items()}


def loaded(weights: dict[str, torch.Tensor], folder: Path):
    """MODEL, CLIP and VAE of the miniature checkpoint with this narrow U-Net."""
    path = folder / "tuned.safetensors"
    save_file(full_state(weights), path)
    return inprocess.load_checkpoint(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    original, rows = Eraser(), []
    plans = {target: character_plan(target) for target in TARGETS}
    entries = {target: judging.character_entries(target, "test", 16, 1, 0, 0) for target in TARGETS}

    def seen(weights_for) -> list[dict]:
        return [judging.shares(judging.see(weights_for(target), entries[target], beside=False)) for target in TARGETS]

    with torch.inference_mode():
        bases = {target: original.basis(plans[target]) for target in TARGETS}
        before = narrow(original.model)
        changed = {
            t: {k: v - before[k] for k, v in narrow(run(ApplyProjection, model=original.model, basis=b)[0]).items()}
            for t, b in bases.items()
        }
        own = weights_identity(original.model, attention_sites(original.model))
    latents, text = drawings()
    for steps, peak in ((0, 0.0), *TUNES):
        weights = tuned(latents, text, steps, peak) if steps else load_unet_state()
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            eraser = Eraser(loaded(weights, Path(folder)))
            distance = weights_distance(own, weights_identity(eraser.model, attention_sites(eraser.model)))
            floats = {k: v.float() for k, v in weights.items()}

            def by(basis, eraser=eraser, floats=floats) -> dict:
                return {**floats, **narrow(run(ApplyProjection, model=eraser.model, basis=basis)[0])}

            def by_lora(target, floats=floats) -> dict:
                return {**floats, **{k: floats[k] + change for k, change in changed[target].items()}}

            label = f"{distance:.1%} ({steps} steps of {peak:g})" if steps else "0 (the original)"
            for name, weights_for in (
                ("no edit", lambda t, floats=floats: floats),
                ("its own basis", lambda t, eraser=eraser: by(eraser.basis(plans[t]))),
                ("the original's basis", lambda t: by(bases[t])),
                ("the original's LoRA", by_lora),
            ):
                if steps or name in ("no edit", "its own basis"):
                    results = seen(weights_for)
                    rows.append([label, name, *(tables.pooled(results, g) for g in GROUPS)])
                    print(*map(str, rows[-1]), flush=True)
    table = tables.markdown(tables.heading("weights are away by", ["edit", *GROUPS]), rows)
    print(table)
    if options.write:
        tables.fill({"transfer": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
