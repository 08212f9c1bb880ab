"""Lays the narrow weights into a full-size checkpoint in Stable Diffusion 1's layout.

    python -m mini_sd.layout OUT.safetensors        (in tools/)

The result (340 MB in float16) loads as SD 1.5 wherever SD 1.5 loads: U-Net under model.diffusion_model., a CLIP-L text
model whose last ten layers pass their input on, and a tiny autoencoder under first_stage_model.taesd_*.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .narrow import AE, FULL, TEXT, TEXT_FULL, TEXT_TOKENS, TIME_FULL, TUNED, WEIGHTS, load_unet_state
from .world import WORLD

NAME = "mini_sd.safetensors" if WORLD == 1 else f"mini_sd_world{WORLD}.safetensors"  # in a ComfyUI's list
VOCABULARY, LAYERS, MLP_FULL, AE_FULL = 49408, 12, 3072, 64


def put(full_shape, small: torch.Tensor, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """A zero tensor with `small` in its leading corner."""
    out = torch.zeros(full_shape, dtype=dtype)
    out[tuple(slice(0, n) for n in small.shape)] = small.to(dtype)
    return out


def expand_unet(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for key, w in weights.items():
        name = "model.diffusion_model." + key
        w = w.half()
        if key.startswith("time_embed.0") and w.dim() == 2:
            out[name] = put((TIME_FULL, FULL), w)
        elif key.startswith("time_embed"):
            out[name] = put([TIME_FULL] * w.dim(), w)
        elif ".emb_layers." in key:
            out[name] = put((FULL, TIME_FULL)[: w.dim()], w)
        elif ".attn2.to_k." in key or ".attn2.to_v." in key:
            out[name] = put((FULL, TEXT_FULL), w)
        elif ".ff.net.0.proj." in key:  # two halves: values and gates
            halves = [put((4 * FULL, FULL)[: w.dim()], h) for h in w.chunk(2)]
            out[name] = torch.cat(halves)
        elif ".ff.net.2.weight" in key:
            out[name] = put((FULL, 4 * FULL), w)
        elif (
            key.startswith("output_blocks")
            and (".in_layers." in key or ".skip_connection." in key)
            and (w.dim() == 4 or ".in_layers.0." in key)
        ):
            # the input is two concatenated widths: each goes to the head of its own 320 channels
            if w.dim() == 4:
                out[name] = torch.cat([put((FULL, FULL, *w.shape[2:]), part) for part in w.chunk(2, dim=1)], dim=1)
            else:
                out[name] = torch.cat([put((FULL,), part) for part in w.chunk(2)])
        elif w.dim() == 4:
            cin = w.shape[1] if w.shape[1] == 4 else FULL
            cout = w.shape[0] if w.shape[0] == 4 else FULL
            out[name] = put((cout, cin, *w.shape[2:]), w)
        elif w.dim() == 2:
            out[name] = put((FULL, FULL), w)
        else:
            out[name] = put((w.shape[0] if w.shape[0] == 4 else FULL,), w)
    return out


def expand_text(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    root, out = "cond_stage_model.transformer.text_model.", {}
    ids = weights["token_ids"].long()
    table = torch.zeros(VOCABULARY, TEXT_FULL, dtype=torch.float16)
    table[ids, :TEXT] = weights["token_embedding.weight"].half()
    out[root + "embeddings.token_embedding.weight"] = table
    out[root + "embeddings.position_embedding.weight"] = put((TEXT_TOKENS, TEXT_FULL), weights["position_embedding"])
    for end in ("weight", "bias"):
        out[root + f"final_layer_norm.{end}"] = put((TEXT_FULL,), weights[f"final_layer_norm.{end}"])

    def zero(*shape):
        return torch.zeros(shape, dtype=torch.float16)

    for i in range(LAYERS):
        at = f"{root}encoder.layers.{i}."

        def get(name, shape, layer=f"layers.{i}."):
            return put(shape, weights[layer + name]) if layer + name in weights else zero(*shape)

        for norm in ("layer_norm1", "layer_norm2"):
            for end in ("weight", "bias"):
                out[at + f"{norm}.{end}"] = get(f"{norm}.{end}", (TEXT_FULL,))
        for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out[at + f"self_attn.{proj}.weight"] = get(f"{proj}.weight", (TEXT_FULL, TEXT_FULL))
            out[at + f"self_attn.{proj}.bias"] = get(f"{proj}.bias", (TEXT_FULL,))
        out[at + "mlp.fc1.weight"] = get("fc1.weight", (MLP_FULL, TEXT_FULL))
        out[at + "mlp.fc1.bias"] = get("fc1.bias", (MLP_FULL,))
        out[at + "mlp.fc2.weight"] = get("fc2.weight", (TEXT_FULL, MLP_FULL))
        out[at + "mlp.fc2.bias"] = get("fc2.bias", (TEXT_FULL,))
    return out


def expand_autoencoder(encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    blocks = {"encoder": {1, 3, 4, 5, 7, 8, 9, 11, 12, 13}, "decoder": {3, 4, 5, 8, 9, 10, 13, 14, 15, 18}}
    out = {"first_stage_model.vae_scale": torch.tensor(0.18215), "first_stage_model.vae_shift": torch.tensor(0.0)}
    for side, weights in (("encoder", encoder), ("decoder", decoder)):
        root = f"first_stage_model.taesd_{side}."
        for key, w in weights.items():
            shape = [AE_FULL if n == AE else n for n in w.shape]
            out[root + key] = put(shape, w)
        for block in blocks[side]:
            for conv in (0, 2, 4):
                out.setdefault(
                    f"{root}{block}.conv.{conv}.weight", torch.zeros(AE_FULL, AE_FULL, 3, 3, dtype=torch.float16)
                )
                out.setdefault(f"{root}{block}.conv.{conv}.bias", torch.zeros(AE_FULL, dtype=torch.float16))
    return out


def full_state(unet: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of the full-size checkpoint, float16; with another narrow U-Net's weights where they are given."""

    def load(name, folder=WEIGHTS):
        return load_file(folder / f"{name}.safetensors")

    state = {
        **expand_unet(unet or load_unet_state()),
        **expand_text(load("text", TUNED)),
        **expand_autoencoder(load("vae_encoder"), load("vae_decoder")),
    }
    return {k: v.contiguous() for k, v in state.items()}


def build_checkpoint(target: Path) -> Path:
    """Writes the checkpoint unless it is there; whole or not at all."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}.part")  # others may make it too
        save_file(full_state(), part, metadata={"format": "pt"})
        os.replace(part, target)
    return target


WAN = ("mini_wan.safetensors", "mini_clip_l.safetensors", "mini_taew2_1.safetensors")


def install_checkpoint(base: str | Path) -> Path:
    """The checkpoint among the models of a ComfyUI's base folder, made if it is not there."""
    return build_checkpoint(Path(base) / "models" / "checkpoints" / NAME)


def install_wan(base: str | Path) -> None:
    """The transformer in Wan's layout with its text encoder and autoencoder, made if they are not there: by a process
    of its own, since that needs the host's classes."""
    if not all(list((Path(base) / "models").glob(f"*/{name}")) for name in WAN):
        command = [sys.executable, "-m", "mini_sd.dit_layout", str(base), *WAN]
        subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=True)


if __name__ == "__main__":
    build_checkpoint(Path(sys.argv[1]))
