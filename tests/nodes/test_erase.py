"""The graph that PURE Erase Concept stands for, and what its dial and its kinds set."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from pure_pack.nodes.erase import EraseConcept, shown_prompts
from pure_pack.nodes.host import expansion
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.kinds import KINDS, settings_of, weight_of

from random_transformers import RandomText, load_transformer

MODEL, CLIP, VAE = ["1", 0], ["1", 1], ["1", 2]


def graph_of(links, pictures, keep="zorbo", replace_with=""):
    parts = {"steps": 3}, {"rule": "contrast"}, {"strength": 1.0}, pictures, {}
    erasure = expansion.Erasure("miplo", keep, replace_with, "free text", {"captions": "a red circle"}, *parts)
    return expansion.expand(erasure, links)


def kinds_of(graph):
    return sorted(node["class_type"].removeprefix("PURE_") for node in graph.values())


def test_each_list_has_its_own_prompts_and_capture():
    graph, outputs = graph_of({"model": MODEL, "clip": CLIP}, "")
    assert kinds_of(graph).count("CaptureActivations") == kinds_of(graph).count("ConceptPrompts") == 2
    assert "CompareImages" not in kinds_of(graph)
    captures = [node["inputs"] for node in graph.values() if node["class_type"] == "PURE_CaptureActivations"]
    assert [c["prompts"][1] for c in captures] == [0, 1]  # what to forget, what to keep
    assert all(c["model"] == MODEL and c["clip"] == CLIP and c["steps"] == 3 for c in captures)
    assert graph[outputs["model"][0]]["class_type"] == "PURE_ApplyProjection"
    assert graph[outputs["basis"][0]]["class_type"] == "PURE_BuildBasis"


@pytest.mark.parametrize("keep", ["zorbo", ""])
def test_ordinary_pictures_are_kept_beside_the_list_or_alone(keep):
    graph, outputs = graph_of({"model": MODEL, "clip": CLIP}, "", keep)
    ordinary = next(name for name, node in graph.items() if node["class_type"] == "PURE_CaptureOrdinary")
    assert graph[ordinary]["inputs"]["captions"] == "a red circle"
    built = graph[outputs["basis"][0]]["inputs"]
    assert built["ordinary"] == [ordinary, 0]
    assert ("keep" in built) == bool(keep)
    assert "replacement" not in built
    assert kinds_of(graph).count("CaptureActivations") == 1 + bool(keep)


def test_what_is_drawn_instead_has_a_capture_of_its_own():
    graph, outputs = graph_of({"model": MODEL, "clip": CLIP}, "", replace_with="a dog")
    capture, output = graph[outputs["basis"][0]]["inputs"]["replacement"]
    prompts, role = graph[capture]["inputs"]["prompts"]
    assert (output, role, graph[prompts]["inputs"]["forget"]) == (0, 0, "a dog")
    assert kinds_of(graph).count("CaptureActivations") == 3


def test_with_a_vae_it_draws_before_and_after():
    graph, _ = graph_of({"model": MODEL, "clip": CLIP, "vae": VAE}, "a picture of miplo")
    compared = next(node["inputs"] for node in graph.values() if node["class_type"] == "PURE_CompareImages")
    assert compared["original"] == MODEL
    assert compared["edited"] != MODEL
    assert compared["vae"] == VAE
    assert compared["prompts"] == "a picture of miplo"


def test_a_model_that_comes_by_no_wire_is_refused():
    expansion.check_wired({"model": MODEL, "clip": CLIP}, "model", "clip")
    with pytest.raises(PureError, match="Nothing is connected to clip"):
        expansion.check_wired({"model": MODEL}, "model", "clip")


@pytest.mark.parametrize("kind", KINDS)
def test_the_dial_turns_the_weight_and_nothing_else(kind):
    little, middle, much = (settings_of(kind, amount)[0] for amount in (0.0, 0.5, 1.0))
    assert middle.keep_weight == (KINDS[kind].with_keys or KINDS[kind].keep_weight)
    assert little.keep_weight == pytest.approx(100 * middle.keep_weight)
    assert much.keep_weight == pytest.approx(middle.keep_weight / 100)
    assert replace(little, keep_weight=middle.keep_weight) == replace(much, keep_weight=middle.keep_weight)
    without_keys, weights = settings_of(kind, 0.5, keys=False)
    assert (without_keys.keep_weight, weights) == (KINDS[kind].keep_weight, "values")
    for layout, part in (("transformer", 3), ("one stream", 50)):
        assert settings_of(kind, 0.5, layout)[0].keep_weight == pytest.approx(middle.keep_weight / part)
    replacing = settings_of(kind, 0.5, replacing=True)[0]
    assert replacing.keep_weight == pytest.approx(middle.keep_weight * 2 / 15)
    assert replace(replacing, keep_weight=middle.keep_weight) == middle
    with pytest.raises(PureError, match="amount must be between"):
        weight_of(float("nan"), 3.0)


def built_by_the_node(model, clip, kind, **inputs):
    """What the node sets of PURE Build Basis, and which weights of PURE Apply Projection."""
    node = EraseConcept.PREPARE_CLASS_CLONE({})
    links = {"inputs": {"model": MODEL, "clip": CLIP}}
    node.hidden = SimpleNamespace(unique_id="9", dynprompt=SimpleNamespace(get_node=lambda _: links))
    given = {i.id: i.default for i in node.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    made = node.execute(**given | {"model": model, "clip": clip, "forget": "miplo", "kind": kind, **inputs}).expand
    of = {part["class_type"]: part["inputs"] for part in made.values()}
    return of["PURE_BuildBasis"]["keep_weight"], of["PURE_ApplyProjection"]["weights"]


def test_the_settings_are_those_of_the_models_family(mini):
    style = KINDS["artistic style"]
    assert built_by_the_node(*mini[:2], "object or character") == (1.5, "values")
    instead = built_by_the_node(*mini[:2], "object or character", replace_with="pelluna")
    assert instead == (pytest.approx(0.2), "values")
    assert built_by_the_node(*mini[:2], "artistic style") == (style.with_keys, "keys and values")
    transformer = load_transformer("SD 3"), RandomText("SD 3")
    assert built_by_the_node(*transformer, "object or character") == (pytest.approx(0.5), "values")
    assert built_by_the_node(*transformer, "artistic style") == (pytest.approx(style.keep_weight / 3), "values")


def test_pictures_are_of_a_name_a_description_and_what_is_kept():
    lists = ("zorbo\na round golden critter\nanother", "miplo\ntarnik")
    assert shown_prompts(*lists, "object or character") == ["zorbo", "a round golden critter", "miplo"]
    assert shown_prompts("zorbo", "", "object or character") == ["zorbo"]
    style = shown_prompts("vornak\nin black and white", "a painting by dottini", "artistic style")
    assert style[::2] == ["a picture in the style of vornak", "a painting by dottini"]
