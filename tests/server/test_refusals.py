"""Mistakes and models that cannot be edited, over HTTP: one sentence that says what to do, and nothing left behind."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from comfyui_server import ServerError
from graphs import graph, picture

BAD_WIDGETS = [  # changes, the widget, and what is said of it
    ({"lists": {"forget": " \n "}}, "forget", "The forget box is empty"),
    ({"lists": {"kind": "nonsense"}}, "kind", "kind must be one of"),
    ({"lists": {"templates": "no place for it"}}, "templates", "needs {} exactly once"),
    ({"lists": {"keep": "Miplo\nzorbo"}}, "keep", "'miplo': in both lists"),
    ({"capture_forget": {"sampler_name": "euler_ancestral"}}, "sampler_name", "draws noise"),
    ({"capture_forget": {"scheduler": "nonsense"}}, "scheduler", "scheduler must be one of"),
    ({"capture_forget": {"recorded_steps": 9}}, "recorded_steps", "recorded_steps must be between 1 and steps (4)"),
    ({"capture_forget": {"cfg": float("nan")}}, "cfg", "cfg must be 0 or more"),
    ({"build": {"keep": ["capture_forget", 0]}}, "retain", "is of prompts to forget"),
    ({"build": {"rule": "nonsense"}}, "rule", "rule must be one of"),
    ({"build": {"centering": "nonsense"}}, "centering", "centering must be one of"),
    ({"build": {"structure": "nonsense"}}, "structure", "structure must be one of"),
    ({"build": {"rule": "energy", "forget_energy": float("nan")}}, "forget_energy", "forget_energy must be between"),
    ({"apply": {"strength": float("nan")}}, "strength", "strength must be"),
    ({"apply": {"weights": "nonsense"}}, "weights", "weights must be one of"),
    ({"apply": {"layers": "nonsense"}}, "layers", "layers must be one of"),
]


@pytest.mark.parametrize(("changes", "widget", "words"), BAD_WIDGETS, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_widgets_end_in_a_sentence_that_says_what_to_do(server, changes, widget, words):
    with pytest.raises(ServerError) as error:
        server.run(graph(**changes))
    told = str(error.value)
    # hosts after 0.3.75 check choices themselves
    assert words in told or ("value_not_in_list" in told and f'"details": "{widget}: ' in told)


@pytest.mark.parametrize(
    ("node", "missing", "words"),
    [
        ("capture_forget", "prompts", "Nothing is connected to prompts of PURE Capture Activations"),
        ("build", "forget", "Nothing is connected to forget of PURE Build Basis"),
        ("apply", "basis", "Nothing is connected to basis of PURE Apply Projection"),
    ],
)
def test_a_missing_wire_stops_the_run_in_words(server, node, missing, words):
    """It was a red ring only, while the rest ran and the last run's pictures stayed."""
    with pytest.raises(ServerError, match=words):
        server.run(graph(**{node: {missing: None}}))


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_strength_out_of_range_is_refused_before_anything_runs(server, strength):
    with pytest.raises(ServerError, match=r"smaller than min|bigger than max"):
        server.run(graph(apply={"strength": strength}))


def test_an_energy_basis_that_holds_every_forget_direction_is_refused(server):
    changes = {
        "lists": {"forget": "(zorbo:1.0)", "keep": "zorbo", "templates": "{}\na picture of {}"},
    }  # the same tokens in other letters
    with pytest.raises(ServerError, match="would change nothing"):
        server.run(graph(**changes, build={"rule": "energy", "forget_energy": 1.0, "keep_energy": 1.0}))


def other_models(base):
    """Models that the host loads and the pack refuses.

    One without cross-attention, one of another layout, one that overflows.
    """
    import inprocess

    inprocess.start()
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    common = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}

    def fill(module):
        return {k: torch.zeros_like(v, dtype=torch.float16) for k, v in module.state_dict().items()}

    folder = base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        fill(
            MMDiT(
                input_size=None,
                pos_embed_max_size=16,
                depth=1,
                patch_size=2,
                in_channels=16,
                adm_in_channels=2048,
                num_patches=256,
                pos_embed_scaling_factor=None,
                context_embedder_config={
                    "target": "torch.nn.Linear",
                    "params": {"in_features": 4096, "out_features": 64},
                },
                **common,
            )
        ),
        folder / "no_attn2.safetensors",
    )
    save_file(
        fill(
            UNetModel(
                image_size=32,
                in_channels=4,
                out_channels=4,
                model_channels=320,
                num_res_blocks=[1],
                channel_mult=(1,),
                transformer_depth=[1],
                transformer_depth_output=[1, 1],
                transformer_depth_middle=1,
                num_heads=8,
                context_dim=768,
                use_spatial_transformer=True,
                legacy=False,
                **common,
            )
        ),
        folder / "one_level.safetensors",
    )
    from mini_sd.layout import full_state

    unet = {
        k.removeprefix("model.diffusion_model."): v
        for k, v in full_state().items()
        if k.startswith("model.diffusion_model.")
    }
    unet["middle_block.1.transformer_blocks.0.attn2.to_v.weight"] = torch.full_like(
        unet["middle_block.1.transformer_blocks.0.attn2.to_v.weight"], float("inf")
    )
    save_file(unet, folder / "overflows.safetensors")


@pytest.mark.parametrize(
    ("file", "node", "words"),
    [
        ("no_attn2.safetensors", "capture_forget", "This CLIP does not fit this MODEL (SD3)"),
        (
            "one_level.safetensors",
            "apply",
            ("This basis was made for another kind of model: this MODEL has 4 attention layers and the basis has 7"),
        ),
        ("overflows.safetensors", "capture_forget", "An activation is NaN or infinite"),
    ],
)
def test_models_that_cannot_be_edited_are_refused(server, base, file, node, words):
    if not (base / "models" / "diffusion_models" / file).exists():
        other_models(base)
    unet = {"class_type": "UNETLoader", "inputs": {"unet_name": file, "weight_dtype": "default"}}
    with pytest.raises(ServerError) as error:
        server.run(graph(unet=unet, **{node: {"model": ["unet", 0]}}))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("TestReplaceAttention", "already replaced this MODEL's cross-attention"),
        ("TestQuantise", "are packed (uint8), and PURE cannot edit them. Load an fp32, fp16, bf16 or fp8 checkpoint"),
        ("TestFailInTheMiddle", "failed in the middle"),
    ],
)
def test_what_other_packs_do_to_a_model_is_refused_and_leaves_nothing_behind(server, done, kind, words):
    other = {"class_type": kind, "inputs": {"model": ["loader", 0]}}
    with pytest.raises(ServerError) as error:
        server.run(graph(other=other, capture_forget={"model": ["other", 0]}))
    assert words in str(error.value)
    fresh = "{}" + "\n" * (3 + len(kind))  # other text, same prompts: nothing comes from the cache
    assert np.array_equal(
        picture(server, server.run(graph(lists={"templates": fresh}))),
        picture(server, done),
    )
