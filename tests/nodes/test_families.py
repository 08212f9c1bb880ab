"""Every family of U-Net that the host detects: capture, basis, apply, sample, save, reload.

And states that a MODEL comes in.
"""

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from pure_pack.nodes.host import precision, saving
from pure_pack.nodes.host.layers import cross_attention_layers
from pure_pack.nodes.host.patches import edits_of, effective_weight
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.projection import edit_matrix
from test_recording import independent_rows

from random_models import COMMON, LAYOUTS, clip_of, load, random_state
from run_nodes import apply, build, capture, prompts, sample

FAMILIES = {  # layout: the host's class of it, prediction
    "sd15": ("BaseModel", "EPS"),
    "sd1 inpainting": ("BaseModel", "EPS"),
    "sd1 instruct-pix2pix": ("SD15_instructpix2pix", "EPS"),
    "sd2": ("BaseModel", "EPS"),
    "sd2 v-prediction": ("BaseModel", "V_PREDICTION"),
    "sdxl": ("SDXL", "EPS"),
    "sdxl inpainting": ("SDXL", "EPS"),
    "sdxl refiner": ("SDXLRefiner", "EPS"),
    "ssd-1b": ("SDXL", "EPS"),
    "segmind vega": ("SDXL", "EPS"),
    "koala 700m": ("SDXL", "EPS"),
    "koala 1b": ("SDXL", "EPS"),
}
ANCHORS = {"templates": "{}\na picture of {}"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_from_capture_to_reload(family, tmp_path):
    state = random_state(family)
    model = load(state)
    assert (type(model.model).__name__, model.model.model_type.name) == FAMILIES[family]
    layers, clip = cross_attention_layers(model), clip_of(model)
    assert {f"model.{layer.key('keys')}" for layer in layers} == {k for k in state if k.endswith("attn2.to_k.weight")}

    anchors = prompts("zorbo", **ANCHORS)
    got = capture((model, clip), anchors, recorded_steps=1)
    want, _ = independent_rows(model, clip, anchors.pairs, 1)
    for name, moments in got.moments.items():
        h = want[name].double()
        assert moments.count == len(h) == 2
        # float32 through up to 70 layers, in a batch here and one by one there; the next test's control is an order of
        # magnitude above
        assert (moments.factor.T @ moments.factor - h.T @ h).norm() < 3e-5 * (h.T @ h).norm(), name
        heads = h.view(len(h), got.heads[name], -1)
        assert heads.norm(dim=(0, 2)).min() > 1e-3 * h.norm()  # every head is live

    basis = build(
        got, capture((model, clip), prompts("miplo", role="retain", templates="{}"), recorded_steps=1), max_rank=1
    )
    edited = apply(model, basis)
    assert len(edits_of(edited)) == 2 * len(layers)
    for layer in layers[:: max(1, len(layers) // 5)]:
        b = basis.layers[layer.name]
        for projection in ("keys", "values"):
            original = state[f"model.{layer.key(projection)}"].double()
            exact = edit_matrix(b.u.double(), b.m.double()) @ original
            assert (
                (effective_weight(edited, layer.key(projection)).double() - exact).norm()
                < 1e-6 * exact.norm()
                < 1e-2 * (exact - original).norm()
            )
    latent, before = (sample(m, clip, "zorbo", steps=2) for m in (edited, model))
    assert torch.isfinite(latent).all() and (latent - before).norm() > 1e-3 * before.norm()

    comfy.sd.save_checkpoint(str(tmp_path / "model.safetensors"), edited, extra_keys=saving.sampling_marks(edited))
    assert saving.verify_checkpoint(edited, tmp_path / "model.safetensors") < 1e-6
    saving.save_lora(edited, tmp_path / "lora.safetensors", "fp32", False, lambda: None)
    again = comfy.sd.load_checkpoint_guess_config(
        str(tmp_path / "model.safetensors"), output_vae=False, output_clip=False, model_options={"dtype": torch.float32}
    )[0]
    assert again.model.model_type == model.model.model_type
    with_lora, _ = comfy.sd.load_lora_for_models(
        model, None, comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True), 1.0, 0.0
    )
    for other in (again, with_lora):
        assert (sample(other, clip, "zorbo", steps=2) - latent).norm() < 0.01 * (latent - before).norm()


MARKS = {
    "v_pred": {"v_pred": []},
    "zero terminal SNR": {"v_pred": [], "ztsnr": []},
    "EDM v-prediction": {"edm_vpred.sigma_max": 90.0, "edm_vpred.sigma_min": 0.01},
    "Playground 2.5": {"edm_mean": [0.0] * 4, "edm_std": [1.0] * 4},
    "none": {},
}


@pytest.mark.parametrize("kind", MARKS)
def test_what_a_model_predicts_is_known_again_from_its_saved_checkpoint(kind, tmp_path):
    """Prediction, noise levels and latent format, which the host reads off marks in the file."""

    def told(model):
        sampling = model.get_model_object("model_sampling")
        return (
            model.model.model_type.name,
            type(model.model.latent_format).__name__,
            [round(float(getattr(sampling, end)), 4) for end in ("sigma_min", "sigma_max")],
        )

    model = load({**random_state("koala 700m"), **{k: torch.tensor(v) for k, v in MARKS[kind].items()}})
    comfy.sd.save_checkpoint(str(tmp_path / "model.safetensors"), model, extra_keys=saving.sampling_marks(model))
    assert told(load(comfy.utils.load_torch_file(str(tmp_path / "model.safetensors")))) == told(model)
    assert kind == "none" or told(model) != told(load(random_state("koala 700m")))  # control


def test_size_and_pooled_output_reach_sdxl_as_in_its_own_sampling():
    """Control of the test above: with another pooled output, or another size, the rows are others."""
    model = load(random_state("koala 700m"))
    clip, anchors = clip_of(model), prompts("zorbo", templates="{}")

    def rows(c, **k):
        return next(iter(capture((model, c), anchors, recorded_steps=1, **k).moments.values())).sum

    first = rows(clip)
    assert torch.equal(first, rows(clip))
    clip.encode_from_tokens_scheduled = lambda text, encode=clip.encode_from_tokens_scheduled: [
        [c, {"pooled_output": e["pooled_output"] + 1}] for c, e in encode(text)
    ]
    assert (rows(clip) - first).norm() > 1e-4 * first.norm()


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float16, 2**-11), (torch.bfloat16, 2**-8), (torch.float8_e4m3fn, 2**-4), (torch.float8_e5m2, 2**-3)],
    ids=str,
)
@pytest.mark.parametrize("rule", ["contrast", "energy"])
def test_what_reduced_precision_leaves_is_reported_and_within_its_bound(mini, bases, dtype, bound, rule):
    model = load(
        {f"model.{k}": v[0][0].to(dtype) for k, v in mini[0].get_key_patches("diffusion_model.").items()}, dtype
    )
    assert model.get_key_patches()[cross_attention_layers(model)[0].key("keys")][0][0].dtype == dtype
    edited = apply(model, bases[rule])
    found = precision.residual(edited)
    worst = 0.0
    for layer in cross_attention_layers(model):
        m = edited.patches[layer.key("values")][-1][1].weights[1]
        for projection in ("keys", "values"):
            key = layer.key(projection)
            before, exact = effective_weight(model, key), effective_weight(edited, key)
            rounded = precision.kept_weight(edited, key, exact)
            tiny = torch.finfo(dtype).smallest_normal  # below it rounding is absolute
            limit = (
                torch.linalg.matrix_norm(m, 2)
                * (2 * bound * exact.norm() + tiny * 2 * bound * exact.numel() ** 0.5)
                / (m.T @ (before - exact)).norm()
            )
            share = (m.T @ (rounded - exact)).norm() / (m.T @ (before - exact)).norm()
            assert 0 < share < limit
            worst = max(worst, float(share))
    assert found.largest == pytest.approx(worst, rel=1e-4) and found.dtype == str(dtype).removeprefix("torch.")
    text, warnings = precision.describe_residual(found)
    assert found.dtype in text and bool(warnings) == (found.mean > precision.MATTERS)
    assert (dtype in (torch.float16, torch.bfloat16)) <= (not warnings)
    comfy.model_management.load_models_gpu([edited])  # what the host really keeps is what was computed
    key = cross_attention_layers(model)[0].key("values")
    held = comfy.utils.get_attr(edited.model, key)
    assert held.dtype == dtype and torch.equal(
        held.float(), precision.kept_weight(edited, key, effective_weight(edited, key))
    )
    comfy.model_management.unload_all_models()
    assert precision.residual(apply(mini[0], bases[rule])) is None  # control: float32 is kept as it is


@pytest.fixture(scope="module")
def bases(mini):
    with torch.inference_mode():
        forget, retain = capture(mini, prompts("miplo")), capture(mini, prompts("zorbo\npelluna", role="retain"))
        return {"contrast": build(forget, retain), "energy": build(forget, retain, rule="energy", centering="none")}


def test_base_weights_are_untouched_while_loaded_and_the_module_is_after_unloading(mini, bases):
    model = mini[0]
    keys = [layer.key(p) for layer in cross_attention_layers(model) for p in ("keys", "values")]
    before = {k: model.get_key_patches(k)[k][0][0].clone() for k in keys}
    edited = apply(model, bases["contrast"])
    comfy.model_management.load_models_gpu([edited])
    assert not torch.equal(comfy.utils.get_attr(model.model, keys[0]), before[keys[0]])  # control: the edit is loaded
    assert all(torch.equal(model.get_key_patches(k)[k][0][0], w) for k, w in before.items())
    comfy.model_management.unload_all_models()
    assert all(torch.equal(comfy.utils.get_attr(model.model, k), w) for k, w in before.items())


def test_capture_of_a_deep_model_holds_the_moments_alone():
    """What a capture keeps is bounded by the moments, (d + 1)^2 float64 a layer, whatever the number of prompts.

    Few rows take less.
    """
    model = load(random_state("koala 700m"))
    got = capture((model, clip_of(model)), prompts("\n".join(f"thing {i}" for i in range(6))), recorded_steps=1)
    held = sum(m.factor.nbytes + m.ones.nbytes for m in got.moments.values())
    rows, layers = got.count, cross_attention_layers(model)
    assert held <= sum(min(rows, layer.width + 1) * (layer.width + 1) * 8 for layer in layers)


def transformer():
    from comfy.ldm.lightricks.model import LTXVModel

    return LTXVModel(num_layers=1, device="meta", operations=comfy.ops.disable_weight_init)


def flux():
    from comfy.ldm.flux.model import Flux, FluxParams

    newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}  # required after 0.3.75
    return Flux(
        **newer,
        image_model="flux",
        in_channels=16,
        out_channels=16,
        vec_in_dim=8,
        context_in_dim=8,
        hidden_size=128,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 24, 24],
        theta=1,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=False,
        device="meta",
        operations=comfy.ops.disable_weight_init,
        dtype=torch.float32,
    )


def wan():
    from comfy.ldm.wan.model import WanModel

    return WanModel(
        dim=128,
        ffn_dim=128,
        num_heads=2,
        num_layers=1,
        device="meta",
        operations=comfy.ops.disable_weight_init,
        dtype=torch.float32,
    )


def video():
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        **{**COMMON, **LAYOUTS["sd2"], "in_channels": 8},
        use_temporal_attention=True,
        use_temporal_resblock=True,
        extra_ff_mix_layer=True,
        video_kernel_size=[3, 1, 1],
        merge_strategy="learned_with_images",
        merge_factor=0.5,
        operations=comfy.ops.disable_weight_init,
        device="meta",
        dtype=torch.float32,
    )


@pytest.mark.parametrize(
    ("family", "make", "words"),
    [
        ("LTXV", transformer, "no U-Net"),
        ("Flux", flux, "no U-Net"),
        ("WAN21", wan, "no U-Net"),
        ("SVD_img2vid", video, "makes videos"),
    ],
)
def test_other_models_of_the_host_are_refused_by_family(family, make, words):
    """Of the host's own classes; LTXV even has layers called attn2."""
    base = type(family, (), {"diffusion_model": make()})()
    with pytest.raises(PureError, match=rf"\({family}\).*{words}.*SD 1.x, SD 2.x, SDXL"):
        cross_attention_layers(type("Patcher", (), {"model": base})())


def test_hooked_conditioning_is_refused(mini):
    """Its LoRA comes and goes while sampling, after every patch."""

    class Hooked:
        tokenize = staticmethod(mini[1].tokenize)

        @staticmethod
        def encode_from_tokens_scheduled(tokens):
            return [[c, {**extra, "hooks": object()}] for c, extra in mini[1].encode_from_tokens_scheduled(tokens)]

    with pytest.raises(PureError, match="hook LoRA"):
        capture((mini[0], Hooked), prompts("zorbo"))
