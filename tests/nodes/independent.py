"""What is recorded, computed another way: from the attention modules' inputs and weights alone."""

import comfy.samplers
import torch
from pure_pack.nodes.host.sites import attention_sites, diffusion_model

from random_models import attention
from run_nodes import SMALL


def independent_rows(model, clip, pairs, steps, size=64, cfg=1.0):
    """Rows per layer, sampled one prompt at a time, from the inputs of each attention layer and its weights alone."""
    unet, rows, seen = diffusion_model(model), {layer.name: [] for layer in attention_sites(model)}, []

    def spy(name):
        def hook(module, args, kwargs):
            rows[name].append((seen[-1], attention(module, args[0], kwargs["context"]).mean(1)))

        return hook

    handles = [
        unet.register_forward_pre_hook(
            lambda _, a, kw: seen.append(kw["transformer_options"]["cond_or_uncond"]), with_kwargs=True
        )
    ]
    handles += [unet.get_submodule(n).register_forward_pre_hook(spy(n), with_kwargs=True) for n in rows]
    try:
        noise = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(SMALL.get("seed", 0)))
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        for _, text in pairs:
            sampler = comfy.samplers.KSampler(
                model,
                steps=SMALL["steps"],
                device=model.load_device,
                sampler="euler",
                scheduler="normal",
                model_options=model.model_options,
            )
            sampler.sample(
                noise,
                clip.encode_from_tokens_scheduled(clip.tokenize(text)),
                empty,
                cfg=cfg,
                latent_image=torch.zeros_like(noise),
                last_step=steps,
                disable_pbar=True,
                seed=0,
            )
    finally:
        for handle in handles:
            handle.remove()
    return {n: torch.cat([h[half.index(0)][None] for half, h in r]) for n, r in rows.items()}, seen
