"""Random MODELs in the layouts of Stable Diffusion 1 and XL, made by the host's own U-Net class and detected by its own loader; float32."""
import torch

COMMON = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True, "legacy": False}
LAYOUTS = {
    # one block each of widths 320, 640 and 1280, eight live heads in every layer
    "sd1 wide": {"num_res_blocks": [1, 1, 1], "channel_mult": (1, 2, 4), "transformer_depth": [1, 1, 1], "transformer_depth_output": [1] * 6, "transformer_depth_middle": 1,
                 "num_heads": 8, "context_dim": 768},
    # the blocks of SD 1.5 and SDXL, at width 320 throughout
    "sd15": {"num_res_blocks": [2] * 4, "channel_mult": (1, 1, 1, 1), "transformer_depth": [1] * 6 + [0, 0], "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1,
             "num_heads": 8, "context_dim": 768},
    "sdxl": {"num_res_blocks": [2] * 3, "channel_mult": (1, 1, 1), "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
             "transformer_depth_middle": 10, "num_head_channels": 64, "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential", "use_linear_in_transformer": True},
}


def load_random(layout):
    """MODEL, and its U-Net's state dict with the prefix of a checkpoint."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    generator = torch.Generator().manual_seed(1)
    unet = UNetModel(**COMMON, **LAYOUTS[layout], operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="meta")
    state = {}
    for key, tensor in unet.state_dict().items():
        if tensor.dim() == 1:
            state[f"model.diffusion_model.{key}"] = torch.ones(tensor.shape) if key.endswith("weight") else torch.zeros(tensor.shape)
        else:
            state[f"model.diffusion_model.{key}"] = torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5
    return comfy.sd.load_state_dict_guess_config(dict(state), output_vae=False, output_clip=False, model_options={"dtype": torch.float32})[0], state


def load_random_sd1():
    """The wide SD 1 MODEL."""
    return load_random("sd1 wide")[0]
