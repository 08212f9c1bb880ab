"""PURE_MeasureLeakage and PURE_CompareImages on the miniature model."""

import json

import pytest
import torch
from pure_pack.nodes.compare import CompareImages
from pure_pack.nodes.host.patches import ProjectionAdapter, edits_of
from pure_pack.nodes.host.sites import attention_sites, diffusion_model
from pure_pack.nodes.host.weights import effective_weight
from pure_pack.nodes.measure import MeasureLeakage
from pure_pack.pure_core.errors import PureError
from torch.testing import assert_close

from benchmarks.erasers import run
from random_models import load_random
from run_nodes import apply, build, capture, prompts, report

CONCEPT = "miplo\na boxy azure monster with a bobbing antenna and a single eye"
SIZE = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def concept_basis(mini):
    forget = capture(
        mini,
        prompts(
            "miplo\nblue square creature with an antenna and one big eye\nazure square critter with a bobbing "
            "antenna and one big eye"
        ),
    )
    retain = capture(mini, prompts("zorbo\ntarnik\npelluna\nfintolo\nquistle", role="retain"))
    return build(forget, retain, keep_weight=1.0)


@pytest.fixture(scope="module")
def edited(mini, concept_basis):
    return apply(mini[0], concept_basis)


@pytest.fixture(scope="module")
def measured(mini):
    def measure(model):
        out = run(
            MeasureLeakage,
            original=mini[0],
            edited=model,
            clip=mini[1],
            concept_probes=prompts(CONCEPT, templates="{}\n{} at night"),
            keep_probes=prompts("dorrit\nbramby", role="retain", templates="{}"),
            steps=4,
            seed=11,
            **SIZE,
        )
        return json.loads(out[1]), out

    return measure


def random_edit(model, edited, seed=3):
    """A clone with an edit of the same norm on every weight, in random directions."""
    generator, clone = torch.Generator().manual_seed(seed), model.clone()
    for key in edits_of(edited):
        change = effective_weight(edited, key) - effective_weight(model, key)
        noise = torch.randn(change.shape, generator=generator)
        clone.add_patches({key: (noise * (change.norm() / noise.norm()),)}, 1.0)
    return clone


def test_a_clone_reads_one_a_random_edit_stays_high_and_a_real_one_reads_low(mini, edited, measured):
    same, texts = measured(mini[0].clone())
    assert same["leakage"] == 1.0
    assert same["movement"] == 0.0
    assert "no edit between them" in texts[0]
    assert len(same["layers"]) == len(attention_sites(mini[0]))
    real, other = measured(edited)[0], measured(random_edit(mini[0], edited))[0]
    assert real["leakage"] < 0.5 < 0.8 < other["leakage"], (real["leakage"], other["leakage"])


def test_an_edit_of_the_output_is_seen_as_one_of_the_values(mini, concept_basis, measured):
    values, output = (measured(apply(mini[0], concept_basis, weights=w))[0] for w in ("values", "output"))
    assert output["leakage"] < 0.6, (
        output["leakage"],
        values["leakage"],
    )
    assert abs(output["leakage"] - values["leakage"]) < 0.1, (
        output["leakage"],
        values["leakage"],
    )
    first = attention_sites(mini[0])[
        0
    ].name  # its queries no edit changes: before `to_out` an edit of the output would not show at all
    assert output["layers"][first]["leakage"] < 0.95
    assert output["layers"][first]["leakage"] == pytest.approx(values["layers"][first]["leakage"], abs=0.05)


def test_probes_in_each_others_place_are_refused(mini, edited):
    inputs = {"original": mini[0], "edited": edited, "clip": mini[1], **SIZE}
    with pytest.raises(PureError, match="takes prompts to forget"):
        run(MeasureLeakage, concept_probes=prompts("zorbo", role="retain"), keep_probes=prompts(CONCEPT), **inputs)


def test_strength_orders_the_measure(mini, edited, measured):
    def halved(model, share):
        clone = model.clone()
        clone.patches = {
            k: [(share, *p[1:]) if isinstance(p[1], ProjectionAdapter) else p for p in v]
            for k, v in model.patches.items()
        }
        return clone

    left = [measured(halved(edited, s))[0]["leakage"] for s in (0.25, 0.5, 1.0)]
    assert 1.0 > left[0] > left[1] > left[2]


def test_other_models_and_single_probes_are_refused(mini, edited):
    other = load_random("sd1 wide")[0]
    with pytest.raises(PureError, match="not one MODEL before and after"):
        run(
            MeasureLeakage,
            original=mini[0],
            edited=other,
            clip=mini[1],
            concept_probes=prompts(CONCEPT),
            keep_probes=prompts("zorbo", role="retain"),
            **SIZE,
        )
    with pytest.raises(PureError, match="'miplo' has one probe only"):
        run(
            MeasureLeakage,
            original=mini[0],
            edited=edited,
            clip=mini[1],
            concept_probes=prompts("miplo", templates="{}"),
            keep_probes=prompts("zorbo", role="retain"),
            **SIZE,
        )


def test_compared_images_are_what_the_standard_nodes_draw(mini, edited):
    import nodes as host_nodes

    model, clip, vae = mini
    texts = ["miplo in a meadow", "a picture of zorbo"]
    settings = {"seed": 9, "steps": 3, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    grid, before, after = run(
        CompareImages,
        original=model,
        edited=edited,
        clip=clip,
        vae=vae,
        prompts="\n".join(texts),
        columns=2,
        negative="blue",
        **settings,
        **SIZE,
    )

    def encode(t):
        return clip.encode_from_tokens_scheduled(clip.tokenize(t))

    for pictures, source in ((before, model), (after, edited)):
        for picture, text in zip(pictures, texts, strict=True):
            latent = host_nodes.EmptyLatentImage().generate(64, 64)[0]
            sampled = host_nodes.common_ksampler(source, *settings.values(), encode(text), encode("blue"), latent)[0]
            assert_close(picture, vae.decode(sampled["samples"])[0], rtol=0, atol=1e-4)
    assert (before - after).abs().mean() > 0.01  # control: the edit shows
    assert grid.shape[0] == 1
    assert grid.shape[1] > 4 * 64
    assert 0 <= grid.min() <= grid.max() <= 1


def test_the_measures_report_shows_on_the_node_and_says_what_it_cost(mini, edited):
    evaluated = []
    handle = diffusion_model(mini[0]).register_forward_pre_hook(lambda _, args: evaluated.append(len(args[0])))
    text = report(
        MeasureLeakage,
        original=mini[0],
        edited=edited,
        clip=mini[1],
        concept_probes=prompts(CONCEPT, templates="{}\n{} at night"),
        keep_probes=prompts("dorrit", role="retain", templates="{}"),
        steps=2,
        **SIZE,
    )
    handle.remove()
    lines = len(CONCEPT.splitlines())
    assert text.startswith(("Most of the concept", "Some of the concept", "Little of the concept"))
    assert "Kept: dorrit" in text
    assert f"{sum(evaluated)} runs of a MODEL." in text
    assert sum(evaluated) == 2 * (2 * lines + 2) * 2  # both MODELs, all probes, 2 steps


@pytest.mark.parametrize("name", ["sampler_name", "scheduler"])
def test_pictures_are_not_compared_with_another_sampler_than_the_one_asked_for(mini, edited, name):
    """The host's own KSampler would silently take the first of its list."""
    with pytest.raises(PureError, match=f"{name} must be one of .*it is 'nonsense'"):
        run(
            CompareImages,
            original=mini[0],
            edited=edited,
            clip=mini[1],
            vae=mini[2],
            prompts="zorbo",
            **{"steps": 1, name: "nonsense"},
            **SIZE,
        )
