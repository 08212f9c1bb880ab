"""Through the real server's HTTP API: the nodes are there, work, repeat, can be cancelled, and say what is wrong."""

import time

import numpy as np
import pytest
import torch
from pure_pack.pure_core.basis import Settings
from safetensors.torch import save_file

from comfyui_server import ServerError, error_of
from get_comfyui import PROJECT
from graphs import ORDINARY, graph, picture

NODES = {page.stem for page in (PROJECT / "web" / "docs").glob("*.md")}


def test_every_node_is_listed_with_tooltips_and_no_import_warning(server):
    info = server.get("/object_info")
    assert {n for n in info if n.startswith("PURE_")} == NODES
    start = server.log_text().partition("Starting server")[0]
    about_us = [line for line in start.splitlines() if "pure-concept-unlearning" in line]
    assert about_us
    assert not [line for line in about_us if "FAILED" in line or "Cannot" in line or "Error" in line]
    for name in NODES:
        node = info[name]
        assert node["category"] == "PURE"
        assert node["description"]
        assert node["display_name"].startswith("PURE ")
        assert all(node["output_tooltips"])
        for section in node["input"].values():
            for widget in section.values():
                assert not isinstance(widget, list) or len(widget) < 2 or widget[1].get("tooltip")


def test_what_only_experts_need_is_folded_away(server):
    """Names, order and types of all inputs are pinned by tests/nodes/api.json."""
    info = server.get("/object_info")
    folded = {
        n: inputs
        for n in NODES
        if (
            inputs := [
                i
                for s in info[n]["input"].values()
                for i, spec in s.items()
                if len(spec) > 1 and spec[1].get("advanced")
            ]
        )
    }
    assert folded == {
        "PURE_EraseConcept": ["size", "steps", "seed", "batch_size", "cfg", "ordinary", "experimental"],
        "PURE_ConceptPrompts": ["templates"],
        "PURE_CaptureActivations": ["sampler_name", "scheduler", "batch_size", "experimental"],
        "PURE_CaptureOrdinary": ["batch_size", "keep_file"],
        "PURE_BuildBasis": ["forget_energy", "keep_energy", "centering", "structure", "max_rank", "ordinary_share"],
        "PURE_ApplyProjection": ["iterations", "layers"],
    }


def test_reports_and_the_chart_reach_the_history(server, done):
    assert (
        "Captured 1 prompts to forget x 1 seeds x 2 steps in 7 attention layers: 2 recordings in each"
        in done["capture_forget"]["text"][0]
    )
    assert "Erases miplo; keeps zorbo, bramby, the empty prompt." in done["build"]["text"][0]
    assert picture(server, done, "build").shape == (640, 1024, 3)
    assert "Erased from 7 of 7 attention layers: keys and values, ranks" in done["apply"]["text"][0]


def test_two_queues_give_the_same_picture_and_strength_zero_the_original(server, done):
    again = server.run(graph(lists={"templates": "{}\n"}))  # other text, same prompts: nothing comes from the cache
    assert np.array_equal(picture(server, done), picture(server, again))
    original = picture(server, server.run(graph(sampler={"model": ["loader", 0]})))
    assert np.array_equal(original, picture(server, server.run(graph(apply={"strength": 0.0}))))
    assert np.abs(original - picture(server, done)).max() > 20  # control: the edit shows


def erase(**changes):
    """The small graph with the pack in one node; each line is one prompt, so that few are captured."""
    inputs = {
        "model": ["loader", 0],
        "clip": ["loader", 1],
        "forget": "miplo",
        "keep": "zorbo\nbramby",
        "replace_with": "",
        "kind": "free text",
        "amount": 0.5,
        "size": 64,
        "steps": 4,
        "seed": 0,
        "batch_size": 4,
        "cfg": 4.0,
        "ordinary": ORDINARY["inputs"]["captions"],
        "experimental": False,
    }
    inputs = {k: v for k, v in {**inputs, **changes}.items() if v is not None}
    alone = graph(lists=None, capture_forget=None, capture_retain=None, build=None, apply=None)
    alone["erase"] = {"class_type": "PURE_EraseConcept", "inputs": inputs}
    alone["sampler"]["inputs"]["model"] = ["erase", 0]
    return alone


def sampled(server, queued):
    """What a run gives, and how many steps each node of it reported."""
    steps = {}

    def progress(node, value, most):
        steps[node] = steps.get(node, 0) + 1

    return server.run(queued, progress=progress), steps


def test_the_one_node_does_what_the_steps_do_one_by_one(server):
    in_steps = graph(
        lists={"templates": "", "kind": "free text"},
        capture_forget={"recorded_steps": 4},
        capture_retain={"recorded_steps": 4},
        build={
            "ordinary": ["ordinary", 0],
            "keep_weight": Settings().keep_weight,
            "keep_energy": 0.5,
            "centering": "mean of keep",
            "structure": "per head",
        },
        apply={"weights": "values"},
        ordinary=ORDINARY,
    )
    one_by_one, at_once = picture(server, server.run(in_steps)), picture(server, server.run(erase()))
    assert np.array_equal(one_by_one, at_once)
    original = picture(server, server.run(graph(sampler={"model": ["loader", 0]})))
    assert np.abs(original - at_once).mean() > 2  # control: it is an edit


def test_another_amount_or_another_keep_list_captures_only_what_it_has_to(server):
    server.run(erase(seed=21))
    _, again = sampled(server, erase(seed=21, amount=0.8))
    captures = {node: count for node, count in again.items() if node.startswith("erase.") and count > 7}
    # what reports seven steps is the basis, one a layer
    assert captures == {}, again
    assert again["sampler"] > 0, again
    _, kept = sampled(server, erase(seed=21, keep="zorbo\nbramby\ndorrit"))
    assert len({node for node in kept if node.startswith("erase.")}) == 2, kept  # the keep list's capture, the basis
    outputs, replaced = sampled(server, erase(seed=21, keep="zorbo\nbramby\ndorrit", replace_with="quistle"))
    assert len({node for node in replaced if node.startswith("erase.")}) == 2, replaced  # its capture, the basis
    assert any("Draws quistle instead." in str(o) for o in outputs.values())
    _, all_new = sampled(server, erase(seed=22))
    assert len({node for node in all_new if node.startswith("erase.")}) == 3, all_new  # control


def test_with_a_vae_it_shows_before_and_after(server):
    described = erase(vae=["loader", 2], forget="miplo\nblue square creature with an antenna and one big eye")
    outputs = server.run({**described, "shown": {"class_type": "PreviewImage", "inputs": {"images": ["erase", 4]}}})
    grid = picture(server, outputs, "shown")
    without = {**erase(), "shown": {"class_type": "PreviewImage", "inputs": {"images": ["erase", 4]}}}
    chart = picture(server, server.run(without), "shown")
    assert chart.shape == (640, 1024, 3)
    assert grid.shape != chart.shape
    assert grid.shape[1] > 3 * 256  # the name, the description, and the first that is kept
    told = next(o["text"][0] for node, o in outputs.items() if node.startswith("erase.") and "Still there?" in str(o))
    assert told.startswith("Found clearly in 7 of 7 layers: miplo and 1 more.")
    assert "Erased from 7 of 7 attention layers: values, ranks" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forget": "  "}, "The forget box is empty"),
        ({"keep": "zorbo\nMiplo"}, "'miplo': in both lists, to forget and to keep. Remove it from one of them."),
        ({"kind": "nonsense"}, "kind"),
        ({"replace_with": "MIPLO "}, "is to be erased and to be drawn instead"),
    ],
)
def test_mistakes_in_the_one_node_are_said_before_anything_is_sampled(server, changes, words):
    steps = []
    with pytest.raises(ServerError) as error:
        server.run(erase(seed=33, **changes), progress=lambda *step: steps.append(step))
    assert words in str(error.value)
    assert steps == []


def test_an_empty_keep_list_keeps_ordinary_pictures_and_a_twin_is_warned_of(server):
    told = [o["text"][0] for o in server.run(erase(keep="", steps=1)).values() if "Still there?" in str(o)]
    assert "keeps nothing in particular, and 2 ordinary pictures" in told[0]
    twin = erase(keep="zorbo\nbramby\ndorrit\na picture of miplo")
    told = [o["text"][0] for o in server.run(twin).values() if "Still there?" in str(o)]
    assert told[0].startswith("Warning: 'a picture of miplo' in the keep list is")


def from_the_cache(server, changed):
    """Which nodes of a graph the host did not run again."""
    entry = server.wait(server.queue(changed))
    assert entry["status"]["status_str"] == "success"
    return set(next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached"))


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"build": {"keep_weight": 2.5}}, {"build", "apply"}),
        ({"build": {"structure": "per head"}}, {"build", "apply"}),
        ({"apply": {"strength": 0.45}}, {"apply"}),
        ({"apply": {"weights": "output"}}, {"apply"}),
        (
            {"lists": {"keep": "zorbo\nbramby\ndorrit"}},
            {"lists", "capture_forget", "capture_retain", "build", "apply"},
        ),  # what has to be captured again is
    ],
    ids=["weight", "structure", "strength", "weights", "retained"],
)
def test_what_did_not_change_is_not_computed_again(server, changes, again):
    server.run(graph())
    drawn = {"sampler", "decode", "picture"}
    assert from_the_cache(server, graph(**changes)) == set(graph()) - again - drawn


def test_captures_are_merged_by_the_node(server):
    more = {
        "class_type": "PURE_ConceptPrompts",
        "inputs": {
            "forget": "miplo",
            "keep": "tarnik",
            "kind": "object or character",
            "keep_empty_prompt": False,
            "templates": "{}",
        },
    }
    capture = {
        "class_type": "PURE_CaptureActivations",
        "inputs": {**graph()["capture_retain"]["inputs"], "prompts": ["more", 1]},
    }
    merge = {
        "class_type": "PURE_MergeActivations",
        "inputs": {"activations_a": ["capture_retain", 0], "activations_b": ["capture_more", 0]},
    }
    outputs = server.run(graph(more=more, capture_more=capture, merge=merge, build={"keep": ["merge", 0]}))
    assert "keeps zorbo, bramby, the empty prompt, tarnik." in outputs["build"]["text"][0]
    with pytest.raises(ServerError, match="differ in steps"):
        capture["inputs"]["steps"] = 5
        server.run(graph(more=more, capture_more=capture, merge=merge, build={"keep": ["merge", 0]}))


def test_a_lora_before_and_after_the_edit_works(server, base, done):
    generator = torch.Generator().manual_seed(0)
    root = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
    save_file(
        {
            f"{root}.lora_up.weight": torch.randn(320, 2, generator=generator),
            f"{root}.lora_down.weight": torch.randn(2, 768, generator=generator) * 0.05,
            f"{root}.alpha": torch.tensor(2.0),
        },
        base / "models" / "loras" / "test_lora.safetensors",
    )

    def lora(model):
        return {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": model, "lora_name": "test_lora.safetensors", "strength_model": 1.0},
        }

    before = server.run(graph(lora=lora(["loader", 0]), apply={"model": ["lora", 0]}))
    assert "captured on other weights" in before["apply"]["text"][0]  # the capture saw the MODEL without it
    after = server.run(graph(lora=lora(["apply", 0]), sampler={"model": ["lora", 0]}))
    assert not np.array_equal(picture(server, before), picture(server, after))
    assert not np.array_equal(picture(server, after), picture(server, done))


def test_saved_files_are_listed_by_the_loaders_and_draw_the_edited_picture(server, base, done):
    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

    saved = server.run(
        graph(
            save_basis=node(
                "PURE_SaveBasis", basis=["build", 0], filename_prefix="pure/server_test", embed_recipe=True
            ),
            save_lora=node(
                "PURE_SaveLoRA",
                model=["apply", 0],
                filename_prefix="loras/server_test",
                dtype="fp32",
                embed_recipe=True,
            ),
            save=node(
                "PURE_SaveCheckpoint",
                model=["apply", 0],
                clip=["loader", 1],
                vae=["loader", 2],
                filename_prefix="checkpoints/server_test",
                embed_recipe=True,
            ),
        )
    )
    files = {
        n: saved[n]["text"][0].split("Saved ")[1].split(":" if n == "save_lora" else ",")[0]
        for n in ("save_basis", "save_lora", "save")
    }
    assert "edited weights are the MODEL's to" in saved["save"]["text"][0]
    try:
        assert (
            files["save_basis"]
            in server.get("/object_info/PURE_LoadBasis")["PURE_LoadBasis"]["input"]["required"]["name"][1]["options"]
        )
        again = server.run(graph(build=node("PURE_LoadBasis", name=files["save_basis"])))
        by_lora = server.run(
            graph(
                lora=node("LoraLoaderModelOnly", model=["loader", 0], lora_name=files["save_lora"], strength_model=1.0),
                sampler={"model": ["lora", 0]},
            )
        )
        whole = server.run(
            graph(other=node("CheckpointLoaderSimple", ckpt_name=files["save"]), sampler={"model": ["other", 0]})
        )
        for outputs in (again, by_lora, whole):
            assert np.abs(picture(server, outputs) - picture(server, done)).max() <= 2
        for name in ("nothing.safetensors", "../" + files["save_basis"]):
            with pytest.raises(ServerError, match=r"There is no file|not in list|not in \("):
                server.run(graph(build=node("PURE_LoadBasis", name=name)))
        with pytest.raises(ServerError, match="carries no PURE edit"):
            server.run(
                graph(
                    save_lora=node(
                        "PURE_SaveLoRA", model=["loader", 0], filename_prefix="loras/x", dtype="fp16", embed_recipe=True
                    )
                )
            )
        with pytest.raises(ServerError, match="inside ComfyUI's output folder"):
            server.run(
                graph(save_basis=node("PURE_SaveBasis", basis=["build", 0], filename_prefix="../x", embed_recipe=True))
            )
    finally:
        for folder, name in (
            ("pure", files["save_basis"]),
            ("loras", files["save_lora"]),
            ("checkpoints", files["save"]),
        ):
            (base / "output" / folder / name).unlink()


def test_a_cancelled_capture_ends_in_the_middle_and_the_next_run_is_right(server, done):
    long, client, seen = graph(capture_forget={"steps": 400, "recorded_steps": 400, "seed": 1}), "cancels", []
    with server.watching(client, lambda node, step, total: seen.append((step, total))):
        prompt_id = server.queue(long, client)
        while not any(total >= 400 for _, total in seen):
            time.sleep(0.1)
        server.post("/interrupt", {})
        entry = server.wait(prompt_id)
    assert error_of(entry) == "interrupted"
    step, total = seen[-1]
    assert step < total
    again = server.run(graph(lists={"templates": "{}\n\n"}))
    assert np.array_equal(picture(server, again), picture(server, done))
