"""Nodes for the test server alone: what other packs do to a MODEL. Copied into its custom_nodes while the tests run."""

import comfy.sd
import folder_paths
import torch


class OnModel:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "change"
    CATEGORY = "test"


class TestReplaceAttention(OnModel):
    """As IPAdapter and NegPip do."""

    def change(self, model):
        model = model.clone()
        model.set_model_attn2_patch(lambda q, k, v, options: (q, k, v))
        return (model,)


class TestFailInTheMiddle(OnModel):
    """An exception at the second evaluation."""

    def change(self, model):
        model, calls = model.clone(), []

        def wrapper(apply, options):
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("failed in the middle")
            return apply(options["input"], options["timestep"], **options["c"])

        model.set_model_unet_function_wrapper(wrapper)
        return (model,)


class TestQuantise(OnModel):
    """A MODEL whose cross-attention weights are packed integers, as GGUF loaders make them."""

    def change(self, model):
        other = comfy.sd.load_checkpoint_guess_config(folder_paths.get_full_path("checkpoints", "mini_sd.safetensors"))[
            0
        ]
        for name, module in other.model.diffusion_model.named_modules():
            if name.endswith("attn2.to_k"):
                module.weight = torch.nn.Parameter(
                    torch.zeros(module.weight.shape, dtype=torch.uint8), requires_grad=False
                )
        return (other,)


NODE_CLASS_MAPPINGS = {c.__name__: c for c in (TestReplaceAttention, TestFailInTheMiddle, TestQuantise)}
