"""What makes rows is part of a capture: captures of MODELs in different states are never mixed."""

import copy
from dataclasses import replace

import comfy.sd
import comfy.weight_adapter
import pytest
import torch
from pure_pack.nodes.host.identity import Digest, clip_digest, identify, weights_identity
from pure_pack.nodes.host.patches import FAR, NEAR, of_other_weights
from pure_pack.nodes.host.sites import attention_sites
from pure_pack.nodes.host.weights import base_weight, effective_weight
from pure_pack.pure_core.activations import ModelIdentity, weights_distance
from pure_pack.pure_core.errors import PureError

from run_nodes import build, capture, prompts, with_lora


def v_prediction(model):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]


def edm(model):
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    return ModelSamplingContinuousEDM().patch(model, "eps", 120.0, 0.002)[0]


def output_patch(model):
    clone = model.clone()
    clone.set_model_attn2_output_patch(lambda out, options: 0.5 * out)
    return clone


def deep_shrink(model):
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale

    node = PatchModelAddDownscale
    return (
        node.execute(model, 3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic").result[0]
        if hasattr(node, "execute")
        else node().patch(model, 3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic")[0]
    )


def louder(model, by=3.0):
    clone = model.clone()
    clone.model_options["transformer_options"] = {
        **clone.model_options.get("transformer_options", {}),
        "optimized_attention_override": lambda attend, *args, **kwargs: by * attend(*args, **kwargs),
    }
    return clone


def wrapped(model):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(lambda apply, o: 0.5 * apply(o["input"], o["timestep"], **o["c"]))
    return clone


def lora_on(part):
    def patch(model):
        clone, generator = model.clone(), torch.Generator().manual_seed(1)
        patches = {}
        for key, weight in model.model.state_dict().items():
            if key.startswith("diffusion_model.") and key.endswith(f"{part}.weight"):
                up, down = (torch.randn(s, generator=generator) * 0.1 for s in ((len(weight), 2), (2, weight.shape[1])))
                patches[key] = comfy.weight_adapter.LoRAAdapter(set(), (up, down, 2.0, None, None, None))
        assert clone.add_patches(patches)
        return clone

    return patch


CHANGES = {
    "v-prediction": (v_prediction, "how the MODEL samples"),
    "EDM": (edm, "how the MODEL samples"),
    "attn2_output_patch": (output_patch, "in the MODEL's attention"),
    "DeepShrink": (deep_shrink, "in the MODEL's attention"),
    "override": (louder, "in the MODEL's attention"),
    "wrapper": (wrapped, "in the MODEL's attention"),
    "LoRA on attn1": (lora_on("attn1.to_v"), "other weights"),
    "LoRA on queries": (lora_on("attn2.to_q"), "other weights"),
    "LoRA on values": (with_lora, "the attention weights"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_captures_of_a_changed_model_are_not_mixed_with_the_original(mini, change):
    make, words = CHANGES[change]
    changed, clip = make(mini[0]), mini[1]
    forget = capture((changed, clip), prompts("miplo", templates="{}"))
    with pytest.raises(PureError, match=rf"The forget capture and the keep capture differ in .*{words}"):
        build(forget, capture(mini, prompts("zorbo", "retain", templates="{}")))
    again = make(mini[0])  # control: the same change made twice is one MODEL
    assert build(forget, capture((again, clip), prompts("zorbo", "retain", templates="{}"))).sites


def test_captures_with_another_clip_are_not_mixed(mini):
    skipped = mini[1].clone()
    skipped.clip_layer(-2)
    patched, generator = mini[1].clone(), torch.Generator().manual_seed(0)
    key = next(k for k in patched.patcher.model.state_dict() if k.endswith("q_proj.weight"))
    shape = patched.patcher.model.state_dict()[key].shape
    patched.add_patches({key: (torch.randn(shape, generator=generator),)}, 1.0)
    forget = capture(mini, prompts("miplo", templates="{}"))
    for clip in (skipped, patched):
        with pytest.raises(PureError, match=r"differ in the CLIP\. Connect the same"):
            build(forget, capture((mini[0], clip), prompts("zorbo", "retain", templates="{}")))
    assert build(forget, capture((mini[0], mini[1].clone()), prompts("zorbo", "retain", templates="{}"))).sites


def test_a_weight_that_no_checkpoint_of_the_family_has_is_not_part_of_the_clip(mini):
    """Newer hosts leave in it what was in memory: with it a MODEL's own captures did not fit each other."""
    other = mini[1].clone()
    other.patcher.model = copy.deepcopy(mini[1].patcher.model)
    text = other.patcher.model.clip_l.transformer
    text.text_projection.weight.fill_(torch.nan)
    assert clip_digest(other) == clip_digest(mini[1])
    for parameter in text.parameters():
        parameter += 1
    assert clip_digest(other) != clip_digest(mini[1])  # control


def test_an_identity_does_not_depend_on_what_was_done_with_the_model(mini):
    """Not on loading, sampling, clones or the order of options, or captures would not fit that do."""
    import comfy.model_management as management

    model, clip, _ = mini
    sites = attention_sites(model)
    before = identify(model, clip, sites)
    capture(mini, prompts("zorbo", templates="{}"))
    assert identify(model, clip, sites) == before == identify(model.clone(), clip.clone(), sites)
    management.unload_all_models()
    assert identify(model, clip, sites) == before


def test_a_digest_sees_what_is_inside_and_not_which_object_holds_it():
    def digest(value):
        made = Digest()
        made.add(value)
        return str(made)

    def function(scale):
        return lambda x: scale * x

    class Held:
        def __init__(self, value):
            self.value = value

    assert digest(function(2.0)) == digest(function(2.0)) != digest(function(3.0))
    assert digest(Held([1, torch.ones(3)])) == digest(Held([1, torch.ones(3)])) != digest(Held([1, torch.zeros(3)]))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    loop = Held(None)
    loop.value = loop
    assert digest(loop)


@pytest.mark.parametrize("width", [1024, 2048])
def test_a_clip_of_another_family_is_a_sentence_before_any_work(mini, monkeypatch, width):
    from pure_pack.nodes.compare import CompareImages

    from run_nodes import run

    class Other:
        tokenize = staticmethod(lambda text: text)
        encode_from_tokens_scheduled = staticmethod(lambda text: [[torch.zeros(1, 77, width), {}]])

    monkeypatch.setattr(type(mini[0].model), "apply_model", lambda *a, **k: pytest.fail("work was done"))
    words = rf"gives text of width {width} and this MODEL \(BaseModel\) takes 768"
    with pytest.raises(PureError, match=words):
        capture((mini[0], Other), prompts("zorbo"))
    inputs = {"original": mini[0], "edited": mini[0], "prompts": "zorbo"}
    with pytest.raises(PureError, match=words):
        run(CompareImages, clip=Other, vae=mini[2], **inputs)
    for missing in ("clip", "vae"):
        with pytest.raises(PureError, match=rf"There is no {missing.upper()}"):
            run(CompareImages, **{"clip": mini[1], "vae": mini[2], **inputs, missing: None})
    with pytest.raises(PureError, match=r"There is no CLIP"):
        capture((mini[0], None), prompts("zorbo"))


def test_prompts_and_schedules_that_give_no_numbers_are_blamed_and_not_the_precision(mini):
    for text in ("(zorbo:nan)", "(zorbo:inf)"):
        with pytest.raises(PureError, match=r"The CLIP gives no numbers for"):
            capture(mini, prompts(text, templates="{}"))
    with pytest.raises(PureError, match=r"kl_optimal cannot make 1 steps"):
        capture(mini, prompts("zorbo", templates="{}"), scheduler="kl_optimal", steps=1, recorded_steps=1)


@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_the_sketch_tells_how_far_two_models_are_apart(wide, scale):
    """Against the Frobenius norms of all value weights; 320 projections are within 1 in 320^1/2 of them, mostly."""
    sites = attention_sites(wide)
    other, generator, patches = wide.clone(), torch.Generator().manual_seed(3), {}
    for site in sites:
        weight = base_weight(wide, site.key("values")).float()
        patches[site.key("values")] = (scale * weight.std() * torch.randn(weight.shape, generator=generator),)
    other.add_patches(patches)
    pairs = [[effective_weight(m, site.key("values")) for m in (wide, other)] for site in sites]
    apart, own = (
        sum(w.square().sum() for w in part) ** 0.5 for part in zip(*((a - b, a) for a, b in pairs), strict=True)
    )
    one, two = (weights_identity(m, sites) for m in (wide, other))
    assert weights_distance(one, two) == pytest.approx(float(apart / own), rel=0.2)
    assert weights_distance(one, weights_identity(wide.clone(), sites)) == 0.0
    assert weights_distance(one, replace(two, sketch=())) is None


def test_the_warning_says_what_a_distance_meant_for_the_miniature():
    own = ModelIdentity("SD15", "a", sketch=(1.0, -1.0, 2.0))
    assert of_other_weights(own, own) == []
    told = [
        of_other_weights(own, ModelIdentity("SD15", "b", sketch=tuple(v * (1 + d) for v in own.sketch)))[0]
        for d in (NEAR / 2, (NEAR + FAR) / 2, 2 * FAR)
    ]
    assert f"{NEAR / 2:.1%} away" in told[0]
    assert "carried over whole" in told[0]
    assert "a little more of the concept was left" in told[1]
    assert "capture on this MODEL" in told[2]
    assert "Look at the pictures" in of_other_weights(own, ModelIdentity("SD15", "b"))[0]  # an older file
