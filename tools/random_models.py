"""Random MODELs in the layouts of Stable Diffusion 1 and XL, made by the host's own U-Net class and detected by its own
loader."""

import torch

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD1 = {"num_heads": 8, "context_dim": 768}
SD2 = {"num_head_channels": 64, "context_dim": 1024, "use_linear_in_transformer": True}
XL = {
    "num_head_channels": 64,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
}
SMALL = {
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
}
# The blocks of each family at the narrowest width that the host still detects; depth and width are free where it does
# not look at them.
NARROW = {"num_res_blocks": [2] * 3, "channel_mult": (1, 1, 1)}
LAYOUTS = {
    # one block each of widths 320, 640 and 1280, eight live heads in every layer
    "sd1 wide": {
        **SD1,
        "num_res_blocks": [1, 1, 1],
        "channel_mult": (1, 2, 4),
        "transformer_depth": [1, 1, 1],
        "transformer_depth_output": [1] * 6,
        "transformer_depth_middle": 1,
    },
    "sd15": {
        **SD1,
        "num_res_blocks": [2] * 4,
        "channel_mult": (1, 1, 1, 1),
        "transformer_depth": [1] * 6 + [0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
    },
    "sd1 inpainting": {**SD1, **SMALL, "channel_mult": (1, 1, 1), "in_channels": 9},
    "sd1 instruct-pix2pix": {**SD1, **SMALL, "channel_mult": (1, 1, 1), "in_channels": 8},
    "sd2": {**SD2, **SMALL, "channel_mult": (1, 1, 1)},
    "sd2 v-prediction": {
        **SD2,
        "num_res_blocks": [2] * 4,
        "channel_mult": (1, 1, 1, 1),
        "transformer_depth": [1] * 6 + [0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
    },
    "sdxl": {
        **XL,
        **NARROW,
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
    },
    "sdxl inpainting": {
        **XL,
        **NARROW,
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "in_channels": 9,
    },
    "sdxl refiner": {
        "num_head_channels": 64,
        "context_dim": 1280,
        "adm_in_channels": 2560,
        "num_classes": "sequential",
        "use_linear_in_transformer": True,
        "model_channels": 384,
        "num_res_blocks": [2] * 4,
        "channel_mult": (1, 1, 1, 1),
        "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
        "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
        "transformer_depth_middle": 4,
    },
    "ssd-1b": {
        **XL,
        **NARROW,
        "transformer_depth": [0, 0, 2, 2, 4, 4],
        "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
        "transformer_depth_middle": -1,
    },
    "segmind vega": {
        **XL,
        **NARROW,
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "transformer_depth_middle": -1,
    },
    "koala 700m": {
        **XL,
        "num_res_blocks": [1] * 3,
        "channel_mult": (1, 1, 1),
        "transformer_depth": [0, 2, 5],
        "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        "transformer_depth_middle": -2,
    },
    "koala 1b": {
        **XL,
        "num_res_blocks": [1] * 3,
        "channel_mult": (1, 1, 1),
        "transformer_depth": [0, 2, 6],
        "transformer_depth_output": [0, 0, 2, 2, 6, 6],
        "transformer_depth_middle": 6,
    },
}
FULL_WIDTH = {(1, 1, 1): (1, 2, 4), (1, 1, 1, 1): (1, 2, 4, 4)}  # channel_mult of the real ones


def random_state(layout, full=False, dtype=torch.float32):
    """A U-Net's state dict with the prefix of a checkpoint; all weights live.

    full: at the widths of the real models.
    """
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    generator, settings = torch.Generator().manual_seed(1), {**COMMON, **LAYOUTS[layout]}
    if full:
        settings["channel_mult"] = FULL_WIDTH.get(settings["channel_mult"], settings["channel_mult"])
    unet, state = UNetModel(**settings, operations=comfy.ops.disable_weight_init, dtype=dtype, device="meta"), {}
    for key, tensor in unet.state_dict().items():
        flat = torch.ones if key.endswith("weight") else torch.zeros
        value = (
            flat(tensor.shape)
            if tensor.dim() == 1
            else torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5
        )
        state[f"model.diffusion_model.{key}"] = value.to(dtype)
    bias = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if layout == "sd2 v-prediction":  # by the spread of this bias the host tells them apart
        state[bias] = torch.randn(state[bias].shape, generator=generator).to(dtype)
    return state


def load(state, dtype=torch.float32):
    """MODEL of a state dict, by the host's loader."""
    import comfy.sd

    return comfy.sd.load_state_dict_guess_config(
        dict(state), output_vae=False, output_clip=False, model_options={"dtype": dtype}
    )[0]


def load_random(layout):
    """MODEL, and its U-Net's state dict with the prefix of a checkpoint."""
    state = random_state(layout)
    return load(state), state


def attention(module, x, context):
    """softmax(Q K^T / sqrt(d)) V of a cross-attention module, heads concatenated, in float32 from its inputs and
    weights alone: what a capture has to record."""
    q, k, v = (
        t.float() @ getattr(module, f"to_{p}").weight.float().T for p, t in (("q", x), ("k", context), ("v", context))
    )

    def split(t):
        return t.view(t.shape[0], t.shape[1], module.heads, -1).transpose(1, 2)

    weights = torch.softmax(split(q) @ split(k).transpose(-1, -2) / (q.shape[-1] // module.heads) ** 0.5, -1)
    return (weights @ split(v)).transpose(1, 2).flatten(2)


class RandomClip:
    """A CLIP that gives every text its own random embedding and pooled output, of a MODEL's widths.

    77 tokens per 60 characters.
    """

    def __init__(self, context: int, pooled: int = 0):
        self.context, self.pooled = context, pooled

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        generator = torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(text)) % 2**31)

        def draw(*shape):
            return torch.randn(shape, generator=generator)

        return [
            [
                draw(1, 77 * (1 + len(text) // 60), self.context),
                {"pooled_output": draw(1, self.pooled)} if self.pooled else {},
            ]
        ]


def clip_of(model):
    """A RandomClip for a MODEL."""
    config = model.model.model_config.unet_config
    return RandomClip(config["context_dim"], 1280 if config.get("adm_in_channels") else 0)


def load_random_sd1():
    """The wide SD 1 MODEL."""
    return load_random("sd1 wide")[0]
