"""A random MODEL in Stable Diffusion 1's layout: one block each of widths 320, 640 and 1280, eight live heads in every layer."""
import torch


def load_random_sd1():
    """Made by the host's own U-Net class and detected by the host's own loader; float32."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    generator = torch.Generator().manual_seed(1)
    unet = UNetModel(image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1, 1, 1], channel_mult=(1, 2, 4), transformer_depth=[1, 1, 1],
                     transformer_depth_output=[1] * 6, transformer_depth_middle=1, num_heads=8, context_dim=768, use_spatial_transformer=True, legacy=False,
                     operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu")
    state = {}
    for key, tensor in unet.state_dict().items():
        if tensor.dim() == 1:
            state[f"model.diffusion_model.{key}"] = torch.ones_like(tensor) if key.endswith("weight") else torch.zeros_like(tensor)
        else:
            fan_in = tensor[0].numel()
            state[f"model.diffusion_model.{key}"] = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
    del unet
    model = comfy.sd.load_state_dict_guess_config(state, output_vae=False, output_clip=False, model_options={"dtype": torch.float32})[0]
    return model
