"""Every family of U-Net at the widths of the real models, random weights in float16, one recorded step: the table of
docs/tables/families.md.

    python -m benchmarks.families [--only NAME ...] [--write]        (in tools/)

One family at a time in a process of its own, so that memory is given back. Capture (two prompts, a latent of 16 x 16,
the SDXL families with SDXL's size conditioning and a pooled output), basis, apply, one sampling step, LoRA and
checkpoint saved and loaded. A column each says how far what was recorded is from softmax(QK^T/sqrt(d))V and edited
weights from E W, in every eighth of the layers; a row stands only where both are rounding.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import tempfile
import time
from pathlib import Path

from . import child

FAMILIES = (
    "sd15",
    "sd1 inpainting",
    "sd1 instruct-pix2pix",
    "sd2",
    "sd2 v-prediction",
    "sdxl",
    "sdxl inpainting",
    "sdxl refiner",
    "ssd-1b",
    "segmind vega",
    "koala 700m",
    "koala 1b",
)
HEADER = [
    "family",
    "cross-attention layers",
    "widths",
    "U-Net parameters",
    "recorded against QKV",
    "weights against E W",
    "LoRA against MODEL",
    "checkpoint against MODEL",
    "rounding in fp16 puts back",
    "capture s",
    "memory that the capture keeps MB",
    "basis and apply s",
    "peak GB",
]
RECORDED, EXACT, FILES = 1e-4, 1e-5, 1e-2  # what still is rounding (files: of the edit's effect)


def measure(family: str) -> list:
    """One row; raises where any stage fails."""
    import inprocess

    inprocess.start()
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import torch
    from pure_pack.nodes.host import checkpoint, lora_file, precision
    from pure_pack.nodes.host.sites import attention_sites, diffusion_model
    from pure_pack.nodes.host.weights import effective_weight
    from pure_pack.pure_core.projection import edit_matrix
    from pure_pack.pure_core.prompts import anchor_prompts

    import random_models
    from benchmarks.erasers import ApplyProjection, BuildBasis, CaptureActivations, run

    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        state = random_models.random_state(family, full=True, dtype=torch.float16)
        parameters = sum(t.numel() for t in state.values())
        model = random_models.load(state, torch.float16)
        del state
        layers, clip = attention_sites(model), random_models.clip_of(model)

        def capture(name, role):
            prompts = anchor_prompts(name, role, templates="{}\na picture of {}")
            return run(
                CaptureActivations,
                model=model,
                clip=clip,
                prompts=prompts,
                recorded_steps=1,
                width=128,
                height=128,
                batch_size=2,
            )[0]

        capture("none", "forget")  # the host loads and warms up
        started = time.monotonic()
        forget, retain = capture("one", "forget"), capture("two", "retain")
        captured = time.monotonic()
        basis = run(BuildBasis, forget=forget, keep=retain)[0]
        edited = run(ApplyProjection, model=model, basis=basis)[0]
        applied = time.monotonic()
        looked_at = layers[:: max(1, len(layers) // 8)]
        rows: dict = {}
        hooks = [
            diffusion_model(model)
            .get_submodule(layer.name)
            .register_forward_pre_hook(
                lambda module, args, kwargs, name=layer.name: rows.__setitem__(
                    name, random_models.attention(module, args[0], kwargs["context"]).mean(1).double()
                ),
                with_kwargs=True,
            )
            for layer in looked_at
        ]
        again = capture("one", "forget")
        for hook in hooks:
            hook.remove()

        def second(h):
            return h.T @ h

        recorded = max(
            float((second(again.moments[n].factor) - second(h)).norm() / second(h).norm()) for n, h in rows.items()
        )
        exact = 0.0
        for layer in looked_at:
            b, original = basis.sites[layer.name], effective_weight(model, layer.key("values")).double()
            wanted = edit_matrix(b.u.double(), b.m.double()) @ original
            exact = max(
                exact,
                float(
                    (effective_weight(edited, layer.key("values")).double() - wanted).norm()
                    / (wanted - original).norm()
                ),
            )
        kept = (forget.nbytes + retain.nbytes) / 2**20
        lora = lora_file.save_lora(edited, Path(folder) / "lora.safetensors", "fp32", False, lambda: None).path
        loaded = comfy.sd.load_lora_for_models(
            model, None, comfy.utils.load_torch_file(str(lora), safe_load=True), 1.0, 0.0
        )[0]
        worst = 0.0
        for layer in looked_at:
            wanted = effective_weight(edited, layer.key("values"))
            worst = max(
                worst,
                float(
                    (effective_weight(loaded, layer.key("values")) - wanted).norm()
                    / (wanted - effective_weight(model, layer.key("values"))).norm()
                ),
            )
        latent, before = (sample(m, clip) for m in (edited, model))
        if not torch.isfinite(latent).all() or not (latent - before).abs().max() > 0:
            raise AssertionError(f"{family}: the edited MODEL does not sample, or samples what the original does.")
        residual, peak = precision.residual(edited), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        comfy.sd.save_checkpoint(f"{folder}/model.safetensors", edited, extra_keys=checkpoint.sampling_marks(edited))
        checkpoint.verify_checkpoint(edited, None, None, Path(folder) / "model.safetensors")
        del model, edited, loaded
        comfy.model_management.unload_all_models()
        gc.collect()
        model = comfy.sd.load_checkpoint_guess_config(
            f"{folder}/model.safetensors", output_vae=False, output_clip=False, model_options={"dtype": torch.float16}
        )[0]
        file = float((sample(model, clip) - latent).norm() / (latent - before).norm())
        if recorded > RECORDED or exact > EXACT or worst > FILES or file > FILES:
            raise AssertionError(
                f"{family}: recorded rows are {recorded:.2g}, weights {exact:.2g}, the LoRA {worst:.2g}, the "
                f"checkpoint {file:.2g} away from what they have to be."
            )
    return [
        family,
        len(layers),
        ", ".join(map(str, sorted({layer.width for layer in layers}))),
        f"{parameters / 1e6:.0f} M",
        f"{recorded:.1e}",
        f"{exact:.1e}",
        f"{worst:.1e}",
        f"{file:.1e}",
        f"{residual.mean:.1e}",
        f"{captured - started:.1f}",
        f"{kept:.1f}",
        f"{applied - captured:.1f}",
        f"{peak:.1f}",
    ]


def sample(model, clip):
    """The latent after one of two steps."""
    import torch

    import nodes as host_nodes

    def encode(text):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    return host_nodes.common_ksampler(
        model, 5, 1, 1.0, "euler", "normal", encode("one"), encode(""), {"samples": torch.zeros(1, 4, 16, 16)}
    )[0]["samples"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(FAMILIES))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        child.give(measure(options.row))
        return 0
    from benchmarks import tables

    rows = []
    for family in options.only:
        rows.append(child.result_of("benchmarks.families", "--row", family))
        print(tables.markdown(HEADER, rows[-1:]).splitlines()[-1], flush=True)
    if options.write:
        tables.fill({"families": tables.markdown(HEADER, rows)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
