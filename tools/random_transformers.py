"""Small random diffusion transformers of every family in the pack's table, by the host's own classes.

Of each family a config as the host's detection gives it, but narrow: widths that a class takes freely are made small.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

CPU = torch.device("cpu")
SIDE = 8  # of the latents that they are sampled at, where the family allows it


@dataclass(frozen=True)
class Random:
    """One family: the host's config class, its narrow config and what differs at real widths, of few blocks.

    context, pooled: widths of the conditioning. extra: further conditioning tensors, name -> shape after the batch,
    with `tokens` for the number of tokens. sites: how many attention sites it has. side: of its latents. tokens: how
    many the family wants, where it wants a number. newer: what its config has to hold in hosts after 0.3.75.
    """

    config: str
    narrow: dict
    real: dict = field(default_factory=dict)
    context: int = 32
    pooled: int = 0
    extra: dict = field(default_factory=dict)
    sites: int = 2
    side: int = SIDE
    tokens: int = 0
    newer: dict = field(default_factory=dict)

    def config_in_this_host(self, real: bool):
        """The host's config object, narrow or as wide as the real one; None where the host has no such family."""
        import comfy.ldm.flux.model
        import comfy.supported_models

        made = getattr(comfy.supported_models, self.config, None)
        asks = "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__
        return made and made({**self.narrow, **(self.newer if asks else {}), **(self.real if real else {})})


LTX_2 = {
    "image_model": "ltxav",
    "num_layers": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 256,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 128,
    "caption_channels": 32,
    "connector_attention_head_dim": 8,
    "connector_num_attention_heads": 4,
    "connector_num_layers": 1,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 256,
    "out_dim": 16,
    "num_heads": 2,
    "ffn_dim": 64,
    "num_layers": 2,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "in_dim": 16,
}
PIXART = {
    "num_heads": 16,
    "patch_size": 2,
    "hidden_size": 192,
    "in_channels": 4,
    "depth": 2,
    "caption_channels": 32,
    "model_max_length": 300,
}
HYDIT = {"image_model": "hydit", "depth": 4, "hidden_size": 128, "size_cond": False, "use_style_cond": False}
COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "model_channels": 64,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 32,
    "rope_h_extrapolation_ratio": 1.0,
    "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 1.0,
    "extra_per_block_abs_pos_emb": False,
}
FLUX = {
    "image_model": "flux",
    "axes_dim": [8, 12, 12],
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "theta": 10000,
    "in_channels": 16,
    "out_channels": 16,
    "qkv_bias": True,
    "hidden_size": 64,
    "context_in_dim": 32,
    "vec_in_dim": 24,
    "patch_size": 2,
    "depth": 2,
    "depth_single_blocks": 1,
    "guidance_embed": True,
}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "patch_size": [1, 2, 2],
    "out_channels": 16,
    "vec_in_dim": 24,
    "axes_dim": [16, 56, 56],
    "meanflow": False,
    "context_in_dim": 32,
    "hidden_size": 256,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 1,
    "theta": 256,
    "qkv_bias": True,
    "byt5": False,
    "guidance_embed": True,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
NEXT_DIT = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,
    "cap_feat_dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 4,
    "axes_dims": (16, 24, 24),
    "axes_lens": (300, 512, 512),
    "multiple_of": 64,
    "ffn_dim_multiplier": 1.0,
}
TRANSFORMERS = {
    "PixArt alpha": Random(
        "PixArtAlpha",
        {"image_model": "pixart_alpha", "micro_condition": True, **PIXART, "input_size": 64, "pe_interpolation": 1},
        side=34,
    ),
    "PixArt sigma": Random(
        "PixArtSigma",
        {"image_model": "pixart_sigma", "micro_condition": False, **PIXART, "input_size": 64, "pe_interpolation": 1},
        side=34,
    ),
    "HunyuanDiT": Random(
        "HunyuanDiT",
        HYDIT,
        context=1024,
        extra={"conditioning_mt5xl": (256, 2048), "attention_mask": (77,), "attention_mask_mt5xl": (256,)},
        tokens=77,
        sites=4,
    ),
    "Wan t2v": Random("WAN21_T2V", WAN, {"dim": 1536, "num_heads": 12, "ffn_dim": 8960, "num_layers": 4}, context=4096),
    "Wan i2v": Random("WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}, context=4096),
    "Wan VACE": Random(
        "WAN21_Vace", {**WAN, "model_type": "vace", "vace_in_dim": 96, "vace_layers": 1}, context=4096, sites=3
    ),
    "Cosmos-Predict2": Random(
        "CosmosT2IPredict2",
        {**COSMOS, "image_model": "cosmos_predict2", "pos_emb_learnable": True, "min_fps": 1, "max_fps": 30},
    ),
    "Anima": Random(  # its own text adapter gives 512 tokens
        "Anima",
        {**COSMOS, "image_model": "anima", "crossattn_emb_channels": 1024, "min_fps": 1, "max_fps": 30},
        context=1024,
        extra={"t5xxl_ids": ("tokens",), "t5xxl_weights": ("tokens",)},
    ),
    "Kandinsky 5": Random(
        "Kandinsky5Image",
        {
            "image_model": "kandinsky5",
            "model_dim": 256,
            "axes_dims": (16, 24, 24),
            "time_dim": 32,
            "ff_dim": 64,
            "visual_embed_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
        },
        context=3584,
        pooled=768,
    ),
    "Cosmos 1": Random(
        "CosmosT2V",
        {
            **COSMOS,
            "image_model": "cosmos",
            "pos_emb_learnable": False,
            "block_config": "FA-CA-MLP",
            "block_x_format": "THWBD",
            "affline_emb_norm": True,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
    ),
    "LTX Video": Random(
        "LTXV",
        {
            "image_model": "ltxv",
            "num_layers": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 256,
            "caption_channels": 32,
        },
        extra={"attention_mask": ("tokens",)},
        side=4,
    ),
    "LTX-2": Random(  # video alone; its context is the video's and the sound's, one behind the other
        "LTXAV",
        LTX_2,
        context=64,
        extra={"attention_mask": ("tokens",)},
        side=4,
    ),
    "LTX-2.3": Random(  # each head is gated; its text comes at the widths of the blocks
        "LTXAV",
        {**LTX_2, "apply_gated_attention": True, "caption_proj_before_connector": True},
        context=384,
        extra={"attention_mask": ("tokens",)},
        side=4,
    ),
    "SD 3": Random(
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 24,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 32, "out_features": 128},
            },
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "pos_embed_scaling_factor": None,
            "x_block_self_attn_layers": [],
        },
        {
            "depth": 12,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 32, "out_features": 768},
            },
        },
        pooled=24,
    ),
    "SD 3.5 medium": Random(
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 24,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 32, "out_features": 128},
            },
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
        },
        pooled=24,
    ),
    "Qwen-Image": Random(
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "axes_dims_rope": (8, 12, 12),
            "joint_attention_dim": 32,
        },
    ),
    "Flux.1": Random("Flux", FLUX, pooled=24, newer={"txt_ids_dims": []}),
    "Flux.2": Random(
        "Flux2",
        {
            **FLUX,
            "image_model": "flux2",
            "axes_dim": [8, 8, 8, 8],
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "global_modulation": True,
            "vec_in_dim": None,
            "mlp_silu_act": True,
            "qkv_bias": False,
            "ops_bias": False,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
            "theta": 2000,
        },
        pooled=24,
        newer={"txt_ids_dims": [3]},
    ),
    "Chroma": Random(
        "Chroma",
        {
            **{k: v for k, v in FLUX.items() if k not in ("vec_in_dim", "guidance_embed")},
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 64,
            "hidden_dim": 32,
            "n_layers": 2,
        },
        pooled=24,
        newer={"txt_ids_dims": [], "vec_in_dim": None},
    ),
    "HunyuanVideo": Random("HunyuanVideo", HUNYUAN, pooled=24, newer={"meanflow_sum": False}),
    "AuraFlow": Random(
        "AuraFlow",
        {
            "max_seq": 256,
            "cond_seq_dim": 32,
            "n_double_layers": 2,
            "n_layers": 3,
            "dim": 64,
            "n_heads": 2,
            "global_conddim": 64,
        },
    ),
    "HiDream": Random(
        "HiDream",
        {
            "image_model": "hidream",
            "attention_head_dim": 32,
            "axes_dims_rope": [16, 8, 8],
            "caption_channels": [32, 32],
            "max_resolution": [16, 16],
            "in_channels": 16,
            "llama_layers": [0, 1, 1],
            "num_attention_heads": 2,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "num_layers": 2,
            "num_single_layers": 1,
            "out_channels": 16,
            "patch_size": 2,
            "text_emb_dim": 24,
        },
        pooled=24,
        extra={"conditioning_llama3": (2, "tokens", 32)},
    ),
    "Lumina 2": Random("Lumina2", {**NEXT_DIT, "n_kv_heads": 2}),  # two heads of the attention share one of the values
    "Z-Image": Random(  # text and picture are padded to a multiple of nine tokens: 7 to 9, 16 to 18
        "ZImage",
        {**NEXT_DIT, "n_kv_heads": 4, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 9},
        {
            "dim": 1536,
            "n_heads": 12,
            "n_kv_heads": 12,
            "axes_dims": (32, 48, 48),
            "axes_lens": (1536, 512, 512),
            "multiple_of": 256,
            "ffn_dim_multiplier": 8 / 3,
            "n_layers": 6,
            "pad_tokens_multiple": 32,
        },
    ),
    "OmniGen2": Random(
        "Omnigen2",
        {
            "image_model": "omnigen2",
            "hidden_size": 256,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 64,
            "axes_dim_rope": (16, 24, 24),
            "text_feat_dim": 32,
        },
        extra={"attention_mask": ("tokens",)},
    ),
    "Krea 2": Random(  # its text is one of several layers
        "Krea2",
        {
            "image_model": "krea2",
            "features": 128,
            "heads": 4,
            "kvheads": 2,
            "multiplier": 2,
            "layers": 2,
            "channels": 16,
            "txtdim": 32,
            "txtlayers": 2,
            "txtheads": 2,
            "txtkvheads": 2,
        },
        context=64,
    ),
}


def in_this_host() -> list[str]:
    """The families that the host at hand has: all but a few that came after ComfyUI 0.3.75."""
    return [family for family, row in TRANSFORMERS.items() if row.config_in_this_host(False)]


def load_transformer(
    family: str,
    seed: int = 1,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    real: bool = False,
):
    """A MODEL of a family with random weights, all live, to run on a device; as the host's loader makes one."""
    import comfy.model_patcher

    config = TRANSFORMERS[family].config_in_this_host(real)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=CPU)
    randomise(model.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=CPU)


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Fills every parameter: matrices so that they keep lengths, norms about one, biases small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in (*module.named_parameters(), *module.named_buffers()):
            if name in dict(module.named_buffers()) and not name.endswith("pos_embed"):  # others are computed
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.1 * noise)


class RandomText:
    """A CLIP that gives every text a random conditioning of a family.

    embedding, pooled output and what else it takes.
    """

    layer_idx = None

    def __init__(self, family: str, tokens: int = 7):
        self.row, self.tokens = TRANSFORMERS[family], tokens

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        generator = torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(text)) % 2**31)
        tokens = self.row.tokens or self.tokens + len(text) // 20

        def draw(*shape):
            return torch.randn(1, *(tokens if n == "tokens" else n for n in shape), generator=generator)

        extra = {"pooled_output": draw(self.row.pooled)} if self.row.pooled else {}
        for name, shape in self.row.extra.items():
            drawn = draw(*shape)
            extra[name] = torch.ones_like(drawn, dtype=torch.int64) if "mask" in name else drawn
            if name.startswith("t5xxl"):  # as the host's text encoder has them: of no batch
                extra[name] = torch.arange(tokens, dtype=torch.int) if "ids" in name else torch.ones(tokens)
        return [[draw("tokens", self.row.context), extra]]
