"""The edit on a MODEL: equal to its definition with and without LoRAs, exact at strength 0, repeatable, and nothing
else changes."""

from dataclasses import replace

import comfy.lora
import comfy.sd
import comfy.weight_adapter
import pytest
import torch
from pure_pack.nodes.host.identity import weights_digest
from pure_pack.nodes.host.patches import ProjectionAdapter
from pure_pack.nodes.host.sites import attention_sites
from pure_pack.nodes.host.weights import effective_weight
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.projection import edit_matrix
from torch.testing import assert_close

from run_nodes import apply, build, capture, no_room_for, prompts, run, sample, with_lora

SIDES = {
    "keys and values": {"keys": "left", "values": "left"},
    "values": {"values": "left"},
    "output": {"output": "right"},
}


def base_weights(model):
    return {k: v[0][0].clone() for k, v in model.get_key_patches().items() if ".attn2." in k}


@pytest.fixture(scope="module")
def bases(mini):
    with torch.inference_mode():
        forget, retain = capture(mini, prompts("miplo")), capture(mini, prompts("zorbo", "retain"))
        return {
            (rule, structure): build(forget, retain, rule=rule, structure=structure, forget_energy=0.999)
            for rule in ("energy", "contrast")
            for structure in ("whole layer", "per head")
        }


@pytest.mark.parametrize("rule", ["energy", "contrast"])
@pytest.mark.parametrize("structure", ["whole layer", "per head"])
@pytest.mark.parametrize("weights", list(SIDES))
@pytest.mark.parametrize("upstream", ["nothing", "a LoRA", "a merge"])
def test_effective_weights_equal_the_definition(mini, bases, rule, structure, weights, upstream):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    basis, model = bases[rule, structure], mini[0]
    before = {
        "nothing": lambda: model,
        "a LoRA": lambda: with_lora(model),
        "a merge": lambda: ModelMergeSimple().merge(model, with_lora(model), 0.25)[0],
    }[upstream]()
    for iterations in (1, 2, 4) if rule == "energy" else (1, 3):
        for strength in (1.0, 0.4):
            edited = apply(before, basis, weights=weights, iterations=iterations, strength=strength)
            for layer in attention_sites(model)[::3]:
                b = basis.sites[layer.name]
                e = edit_matrix(b.u.double(), b.m.double(), strength, iterations)
                for projection in ("keys", "values", "output"):
                    key = layer.key(projection)
                    original = effective_weight(before, key).double()
                    side = SIDES[weights].get(projection)
                    want = original if side is None else e @ original if side == "left" else original @ e
                    got = effective_weight(edited, key).double()
                    assert (got - want).norm() <= 1e-6 * want.norm()
                    if side:
                        assert (got - original).norm() > 1e-3 * original.norm()  # control: it is an edit


def test_values_and_output_draw_what_comes_instead_and_keys_only_lose_the_concept(mini):
    forget, keep = capture(mini, prompts("miplo")), capture(mini, prompts("zorbo", "retain"))
    basis = build(forget, keep, replacement=capture(mini, prompts("quistle")))
    layer = attention_sites(mini[0])[3]
    b = basis.sites[layer.name]
    taken, whole = (edit_matrix(u.double(), b.m.double()) for u in (b.u, b.left))
    assert (taken - whole).norm() > 0.01 * whole.norm()
    for weights, edits in (("keys and values", {"keys": taken, "values": whole}), ("output", {"output": whole})):
        edited = apply(mini[0], basis, weights=weights)
        for projection, e in edits.items():
            key = layer.key(projection)
            original = effective_weight(mini[0], key).double()
            want = original @ e if projection == "output" else e @ original
            assert (effective_weight(edited, key).double() - want).norm() <= 1e-6 * want.norm()


def test_right_multiplied_output_projects_the_activation_that_is_recorded(mini, bases):
    b = next(iter(bases["energy", "whole layer"].sites.values()))
    layer = attention_sites(mini[0])[0]
    edited = apply(mini[0], bases["energy", "whole layer"], weights="output", iterations=1)
    w_o, h = effective_weight(mini[0], layer.key("output")), torch.randn(5, layer.width)
    assert_close(
        h @ effective_weight(edited, layer.key("output")).T, (h @ edit_matrix(b.u, b.m).T) @ w_o.T, rtol=1e-5, atol=1e-4
    )


def test_two_edits_in_a_row_are_the_product(mini, bases):
    a, b = bases["energy", "whole layer"], bases["contrast", "whole layer"]
    edited, layer = apply(apply(mini[0], a, iterations=1), b, iterations=1), attention_sites(mini[0])[1]
    e = edit_matrix(b.sites[layer.name].u.double(), b.sites[layer.name].m.double()) @ edit_matrix(
        a.sites[layer.name].u.double(), a.sites[layer.name].m.double()
    )
    want = e @ effective_weight(mini[0], layer.key("values")).double()
    assert (effective_weight(edited, layer.key("values")) - want).norm() < 2e-6 * want.norm()


def test_a_lora_after_the_edit_is_added_to_it(mini, bases):
    edited, layer = apply(mini[0], bases["contrast", "whole layer"]), attention_sites(mini[0])[0]
    key = layer.key("values")
    added = effective_weight(with_lora(edited), key) - effective_weight(edited, key)
    assert_close(
        added, effective_weight(with_lora(mini[0]), key) - effective_weight(mini[0], key), rtol=1e-5, atol=1e-6
    )


def test_strength_zero_is_the_input_bit_for_bit_and_the_edit_is_not(mini, bases):
    model, clip, _ = mini
    original = sample(model, clip)
    nothing = apply(model, bases["contrast", "whole layer"], strength=0.0)
    assert nothing is model
    edited = sample(apply(model, bases["contrast", "whole layer"]), clip)
    assert torch.equal(sample(nothing, clip), original)  # also after an edited clone of the same weights was loaded
    assert (edited - original).norm() > 0.05 * original.norm()


def test_two_queues_give_the_same_picture_and_no_clone_or_weight_changes(mini, bases):
    model, clip, _ = mini
    weights, sibling = base_weights(model), with_lora(model)
    before = {k: list(v) for k, v in sibling.patches.items()}

    def queue():
        forget, retain = capture(mini, prompts("miplo")), capture(mini, prompts("zorbo", "retain"))
        return sample(apply(model, build(forget, retain)), clip)

    one, two = queue(), queue()
    assert torch.equal(one, two)
    assert base_weights(model).keys() == weights.keys()
    assert all(torch.equal(w, weights[k]) for k, w in base_weights(model).items())
    assert {k: list(v) for k, v in sibling.patches.items()} == before
    assert model.patches == {}
    with pytest.raises(PureError):
        apply(model, bases["contrast", "whole layer"], strength=2.0)
    assert model.patches == {}
    assert all(torch.equal(w, weights[k]) for k, w in base_weights(model).items())


def test_the_adapter_survives_what_other_hosts_do_to_it(bases):
    """Newer hosts rebuild adapters from (loaded_keys, weights) and hand in fp16.

    Lowvram computes in the weight's own type.
    """
    b = next(iter(bases["energy", "whole layer"].sites.values()))
    adapter = ProjectionAdapter({"k"}, (b.u, b.m, "left", "", {}))
    rebuilt = type(adapter)(adapter.loaded_keys, adapter.weights)
    weight = torch.randn(len(b.u), 50, generator=torch.Generator().manual_seed(2))
    want = edit_matrix(b.u.double(), b.m.double()) @ weight.double()
    for dtype, bound in ((torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 6e-3)):
        stored = weight.to(dtype)
        for patch in (
            adapter,
            rebuilt,
            ProjectionAdapter(set(), (b.u.half(), b.m.half(), "left", "", {})) if dtype != torch.float32 else rebuilt,
        ):
            got = comfy.lora.calculate_weight(
                [(1.0, patch, 1.0, None, None)], stored.clone(), "k", intermediate_dtype=dtype
            )
            assert got.dtype == dtype
            assert (got.double() - want).norm() < bound * want.norm()
    with_function = comfy.lora.calculate_weight([(0.5, adapter, 1.0, None, lambda d: 2 * d)], weight.clone(), "k")
    assert (with_function - want).norm() < 1e-6 * want.norm()
    part = comfy.lora.calculate_weight([(1.0, adapter, 1.0, (1, 10, 20), None)], weight.clone(), "k")
    assert torch.equal(part[:, :10], weight[:, :10])
    assert_close(part[:, 10:30].double(), want[:, 10:30], rtol=1e-5, atol=1e-5)


def test_the_lowvram_path_samples_the_same(mini, bases):
    import comfy.model_management as management

    model, clip, _ = mini
    edited = apply(model, bases["contrast", "whole layer"])
    whole, original = sample(edited, clip), sample(model, clip)
    management.unload_all_models()
    with no_room_for(edited) as counted:
        part = sample(edited, clip)
    management.unload_all_models()
    # control: keys and values of seven layers were patched on the fly
    assert counted
    assert max(counted) >= 14
    assert (part - whole).norm() < 0.02 * (whole - original).norm()


def test_a_third_of_the_layers_alone_can_be_edited(mini, bases):
    basis, counts = bases["contrast", "whole layer"], {}
    for place in ("early", "middle", "late", "all"):
        counts[place] = len(apply(mini[0], basis, layers=place).patches)
    assert counts == {"early": 4, "middle": 4, "late": 6, "all": 14}


def test_another_finetune_is_warned_of_and_another_layout_refused(mini, wide, bases):
    from pure_pack.nodes.apply import ApplyProjection

    basis = bases["contrast", "whole layer"]

    def report(model):
        return run(ApplyProjection, model=model, basis=basis)[1]

    assert "Warning" not in report(mini[0])
    assert "captured on other weights" in report(with_lora(mini[0]))
    layers = attention_sites(mini[0])
    assert (
        weights_digest(mini[0], layers)
        == weights_digest(mini[0].clone(), layers)
        != weights_digest(with_lora(mini[0]), layers)
    )
    with pytest.raises(
        PureError, match="another kind of model: this MODEL has 10 attention layers and the basis has 7"
    ):
        apply(wide, basis)
    fewer_heads = replace(basis, shapes={n: replace(shape, heads=4) for n, shape in basis.shapes.items()})
    with pytest.raises(PureError, match=r"\(320, 8, 768\) in this MODEL and \(320, 4, 768\)"):
        apply(mini[0], fewer_heads)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"strength": float("nan")}, "strength must be"),
        ({"strength": 1.5}, "strength must be"),
        ({"weights": "nonsense"}, "weights must be one of"),
        ({"layers": "nonsense"}, "layers must be one of"),
        ({"iterations": 9}, "iterations must be"),
    ],
)
def test_choices_that_are_not_offered_are_refused(mini, bases, inputs, words):
    with pytest.raises(PureError, match=words):
        apply(mini[0], bases["contrast", "whole layer"], **inputs)


def test_the_fingerprint_is_the_models_own_while_an_edited_clone_is_loaded(mini, bases):
    import comfy.model_management as management

    model, layers = mini[0], attention_sites(mini[0])
    own = weights_digest(model, layers)
    edited = apply(model, bases["contrast", "whole layer"])
    management.load_models_gpu([edited], force_patch_weights=True)
    key = layers[0].key("values").removeprefix("diffusion_model.")
    assert not torch.equal(
        model.model.diffusion_model.state_dict()[key], base_weights(model)["diffusion_model." + key]
    )  # control: the shared module holds the edit
    assert weights_digest(model, layers) == own != weights_digest(edited, layers)


def test_the_fingerprint_tells_loras_their_strength_and_output_edits_apart(mini, bases):
    layers = attention_sites(mini[0])
    weaker = with_lora(mini[0], seed=3)
    weaker.patches = {k: [(0.5 * entry[0], *entry[1:]) for entry in entries] for k, entries in weaker.patches.items()}
    models = [
        mini[0],
        with_lora(mini[0], seed=3),
        with_lora(mini[0], seed=4),
        weaker,
        apply(mini[0], bases["contrast", "whole layer"], weights="output"),
        apply(mini[0], bases["contrast", "whole layer"], weights="output", strength=0.5),
    ]
    assert len({weights_digest(m, layers) for m in models}) == len(models)
    assert weights_digest(with_lora(mini[0], seed=3), layers) == weights_digest(models[1], layers)


def test_a_host_that_does_not_take_a_key_is_an_error_and_not_a_smaller_edit(mini, bases, monkeypatch):
    add = type(mini[0]).add_patches
    monkeypatch.setattr(
        type(mini[0]), "add_patches", lambda self, patches, *a, **k: add(self, dict(list(patches.items())[1:]), *a, **k)
    )
    with pytest.raises(PureError, match="did not take 1 of 14 edits"):
        apply(mini[0], bases["contrast", "whole layer"])
