"""Every family of U-Net that the host detects: capture, basis, apply, sample, save, reload.

And states that a MODEL comes in.
"""

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from pure_pack.nodes.host import checkpoint, lora_file, precision
from pure_pack.nodes.host.patches import edits_of
from pure_pack.nodes.host.sites import attention_sites
from pure_pack.nodes.host.weights import base_weight, effective_weight
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.projection import edit_matrix

from independent import independent_rows
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
    layers, clip = attention_sites(model), clip_of(model)
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
        heads = h.view(len(h), got.shapes[name].heads, -1)
        assert heads.norm(dim=(0, 2)).min() > 1e-3 * h.norm()  # every head is live

    basis = build(
        got, capture((model, clip), prompts("miplo", role="retain", templates="{}"), recorded_steps=1), max_rank=1
    )
    edited = apply(model, basis)
    assert len(edits_of(edited)) == 2 * len(layers)
    for layer in layers[:: max(1, len(layers) // 5)]:
        b = basis.sites[layer.name]
        for projection in ("keys", "values"):
            original = state[f"model.{layer.key(projection)}"].double()
            exact = edit_matrix(b.u.double(), b.m.double()) @ original
            assert (
                (effective_weight(edited, layer.key(projection)).double() - exact).norm()
                < 1e-6 * exact.norm()
                < 1e-2 * (exact - original).norm()
            )
    latent, before = (sample(m, clip, "zorbo", steps=2) for m in (edited, model))
    assert torch.isfinite(latent).all()
    assert (latent - before).norm() > 1e-3 * before.norm()

    comfy.sd.save_checkpoint(str(tmp_path / "model.safetensors"), edited, extra_keys=checkpoint.sampling_marks(edited))
    assert checkpoint.verify_checkpoint(edited, None, None, tmp_path / "model.safetensors") < 1e-6
    lora_file.save_lora(edited, tmp_path / "lora.safetensors", "fp32", False, lambda: None)
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
    comfy.sd.save_checkpoint(str(tmp_path / "model.safetensors"), model, extra_keys=checkpoint.sampling_marks(model))
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
    assert base_weight(model, attention_sites(model)[0].key("keys")).dtype == dtype
    edited = apply(model, bases[rule])
    found = precision.residual(edited)
    worst = 0.0
    for layer in attention_sites(model):
        m = edited.patches[layer.key("values")][-1][1].carried.m
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
    assert found.largest == pytest.approx(worst, rel=1e-4)
    assert found.dtype == str(dtype).removeprefix("torch.")
    text, warnings = precision.describe_residual(found)
    assert found.dtype in text
    assert bool(warnings) == (found.mean > precision.MATTERS)
    assert (dtype in (torch.float16, torch.bfloat16)) <= (not warnings)
    comfy.model_management.load_models_gpu([edited])  # what the host really keeps is what was computed
    key = attention_sites(model)[0].key("values")
    held = comfy.utils.get_attr(edited.model, key)
    assert held.dtype == dtype
    assert torch.equal(held.float(), precision.kept_weight(edited, key, effective_weight(edited, key)))
    comfy.model_management.unload_all_models()
    assert precision.residual(apply(mini[0], bases[rule])) is None  # control: float32 is kept as it is


@pytest.fixture(scope="module")
def bases(mini):
    with torch.inference_mode():
        forget, retain = capture(mini, prompts("miplo")), capture(mini, prompts("zorbo\npelluna", role="retain"))
        return {"contrast": build(forget, retain), "energy": build(forget, retain, rule="energy", centering="none")}


def test_base_weights_are_untouched_while_loaded_and_the_module_is_after_unloading(mini, bases):
    model = mini[0]
    keys = [layer.key(p) for layer in attention_sites(model) for p in ("keys", "values")]
    before = {k: base_weight(model, k).clone() for k in keys}
    edited = apply(model, bases["contrast"])
    comfy.model_management.load_models_gpu([edited])
    assert not torch.equal(comfy.utils.get_attr(model.model, keys[0]), before[keys[0]])  # control: the edit is loaded
    assert all(torch.equal(base_weight(model, k), w) for k, w in before.items())
    comfy.model_management.unload_all_models()
    assert all(torch.equal(comfy.utils.get_attr(model.model, k), w) for k, w in before.items())


def test_capture_of_a_deep_model_holds_the_moments_alone():
    """What a capture keeps is bounded by the moments, (d + 1)^2 float64 a layer, whatever the number of prompts.

    Few rows take less.
    """
    model = load(random_state("koala 700m"))
    got = capture((model, clip_of(model)), prompts("\n".join(f"thing {i}" for i in range(6))), recorded_steps=1)
    held = sum(m.factor.nbytes + m.ones.nbytes for m in got.moments.values())
    rows, layers = got.count, attention_sites(model)
    assert held <= sum(min(rows, layer.width + 1) * (layer.width + 1) * 8 for layer in layers)


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


def test_a_video_model_that_is_fed_a_picture_is_refused_by_family():
    base = type("SVD_img2vid", (), {"diffusion_model": video()})()
    with pytest.raises(PureError, match=r"\(SVD_img2vid\) makes videos.*PURE works with SD 1, SD 2, SDXL"):
        attention_sites(type("Patcher", (), {"model": base})())


def test_hooked_conditioning_is_refused(mini):
    """Its LoRA comes and goes while sampling, after every patch."""

    class Hooked:
        tokenize = staticmethod(mini[1].tokenize)

        @staticmethod
        def encode_from_tokens_scheduled(tokens):
            return [[c, {**extra, "hooks": object()}] for c, extra in mini[1].encode_from_tokens_scheduled(tokens)]

    with pytest.raises(PureError, match="hook LoRA"):
        capture((mini[0], Hooked), prompts("zorbo"))
