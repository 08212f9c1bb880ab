"""What the pack costs on an NVIDIA card: docs/tables/gpu.json and gpu.md.

    python -m benchmarks.gpu [--only KIND ...] [--small] [--write]       (in tools/, with PURE_DEVICE=cuda)

Random weights: SD 1.5 at 512 pixels and SDXL at 1024 in fp16, at full width; a cross-attention transformer of a real
width with few blocks in bf16. A capture beside the same sampling and an edited MODEL's sampling beside the original's,
pair by pair, turn by turn; the card's memory; and the seconds of what the first example does. --small: narrow MODELs
and small pictures, the whole of it in a minute on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inprocess

inprocess.start()  # before anything of comfy is imported

import comfy.model_management as management
import torch
from pure_pack.nodes.host import checkpoint, identity, lora_file, patches, recording, sampling
from pure_pack.nodes.host.sites import attention_sites
from pure_pack.pure_core.basis import Settings
from pure_pack.pure_core.build import build_basis
from pure_pack.pure_core.prompts import anchor_prompts

import host_table
import random_models
import random_transformers
from . import meters, tables
from .erasers import sample_alone

RECORD = tables.DOCUMENTS / "tables" / "gpu.json"
PAIRS, DRAWN, BATCH = 15, 7, 4  # of captures with sampling; of edited with original sampling, between which MODELs swap
RECORDED = 5  # steps of a capture that is compared with sampling
FORGET, KEEP, ORDINARY = 24, 48, 130  # prompts of the first example: 4 lines and 8 names in 6 phrasings, and captions


@dataclass(frozen=True)
class Kind:
    """A MODEL to measure: layout or family, dtype, side of its pictures in pixels, scheduler."""

    name: str
    dtype: torch.dtype
    size: int
    scheduler: str = "normal"
    prompts: int = 16  # of a capture that is compared with sampling

    def load(self, small: bool) -> tuple[Any, Any]:
        """MODEL and CLIP."""
        dtype = torch.float32 if small else self.dtype
        if self.name in random_transformers.TRANSFORMERS:
            device = management.get_torch_device()
            model = random_transformers.load_transformer(self.name, device=device, dtype=dtype, real=not small)
            return model, random_transformers.RandomText(self.name)
        state = random_models.random_state("sd2" if small else self.name, full=not small, dtype=dtype)
        model = random_models.load(state, dtype)
        return model, random_models.clip_of(model)


KINDS = {
    "SD 1.5": Kind("sd15", torch.float16, 512),
    "SDXL": Kind("sdxl", torch.float16, 1024, prompts=4),
    "Wan t2v, 4 blocks": Kind("Wan t2v", torch.bfloat16, 512, "simple"),
}


def vram(function: Callable[[], object]) -> float:
    """MB of the card that are held at most while a function runs; 0 without a card."""
    if not torch.cuda.is_initialized():
        function()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() / 2**20


def lines(count: int, role: str):
    return anchor_prompts("\n".join(f"{role} picture {i}" for i in range(count)), role, "free text")


def measured(kind: Kind, small: bool) -> dict[str, Any]:
    """Ratios with their intervals, MB and seconds of one MODEL."""
    model, clip = kind.load(small)
    size, pairs, part = (64, 3, 12) if small else (kind.size, PAIRS, 1)

    def trajectory(steps: int, recorded: int) -> sampling.Trajectory:
        return sampling.Trajectory(steps, recorded, 1, 0, 1.0, size, size, "euler", kind.scheduler, BATCH)

    few, compared = trajectory(10, RECORDED), lines(2 if small else kind.prompts, "forget")

    def capture() -> object:
        return recording.capture(model, clip, compared, few)

    def bare(which=model) -> None:
        sample_alone(which, clip, compared.texts, few)

    capturing = meters.interleaved(bare, capture, pairs)
    held = {"sampling": vram(bare), "capture": vram(capture)}
    _, identifying = meters.timed(identity.identify, model, clip, attention_sites(model))
    seconds = {"of each capture: which MODEL it is of": identifying}
    forget, seconds["capture, to forget"] = meters.timed(
        recording.capture, model, clip, lines(FORGET // part, "forget"), trajectory(10, 10)
    )
    retain, seconds["capture, to keep"] = meters.timed(
        recording.capture, model, clip, lines(KEEP // part, "retain"), trajectory(10, 10)
    )
    _, seconds["capture, ordinary pictures"] = meters.timed(
        recording.capture, model, clip, lines(ORDINARY // part, "retain"), trajectory(5, 5)
    )
    (basis, _), seconds["basis"] = meters.timed(build_basis, forget, retain, Settings())
    (edited, *_), seconds["apply"] = meters.timed(patches.apply_basis, model, basis, 1.0, "values", 1, "all")
    _, seconds["the host puts the patches on"] = meters.timed(management.load_models_gpu, [edited])
    drawn = meters.interleaved(
        bare,
        lambda: bare(edited),
        min(pairs, DRAWN),
        lambda which: management.load_models_gpu([(model, edited)[which]]),
    )
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        _, seconds["LoRA"] = meters.timed(
            lora_file.save_lora, edited, here / "lora.safetensors", "fp16", False, lambda: None
        )
        _, seconds["checkpoint"] = meters.timed(
            checkpoint.save_checkpoint, edited, None, None, here / "whole.safetensors", False, lambda: None
        )
    return {
        "capture / the same sampling": meters.ratio(capturing),
        "edited / original sampling": meters.ratio(drawn),
        "MB": held,
        "seconds": seconds,
    }


def table(host: str, results: dict[str, dict]) -> str:
    """The document: ratios and memory, then seconds."""
    ratios = [
        [
            name,
            *("{:.3f} [{:.3f}, {:.3f}]".format(*r[key]) for key in list(r)[:2]),
            *(f"{mb:.0f}" for mb in r["MB"].values()),
        ]
        for name, r in results.items()
    ]
    head = ["", "capture / the same sampling", "edited / original sampling", "MB of sampling", "MB of a capture"]
    stages = list(next(iter(results.values()))["seconds"])
    times = [[stage, *(f"{r['seconds'][stage]:.2f}" for r in results.values())] for stage in stages]
    return "\n".join(
        (
            "# On a GPU",
            "",
            f"Written by `nox -s gpu`, on {host}. Random weights; medians of {PAIRS} and {DRAWN} pairs "
            "with 95 % intervals. MODELs are loaded as hosts without dynamic VRAM do.",
            "",
            tables.markdown(head, ratios),
            "",
            f"Seconds of what the first example does ({FORGET} prompts to forget and {KEEP} to keep, 10 steps each; "
            f"{ORDINARY} ordinary pictures, 5 steps, once for a MODEL):",
            "",
            tables.markdown(["", *results], times),
            "",
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    results, host = {}, host_table.this_host()
    for name in options.only:
        with torch.inference_mode():
            results[name] = measured(KINDS[name], options.small)
        management.unload_all_models()
        print(json.dumps({name: results[name]}), flush=True)
    print(table(host, results))
    if options.write and not options.small:
        known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        known = {**(known if known.get("host") == host else {"host": host}), **results}
        RECORD.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        whole = {name: known[name] for name in KINDS if name in known}  # those of earlier runs on the same card, too
        RECORD.with_suffix(".md").write_text(table(host, whole), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
