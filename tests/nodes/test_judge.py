"""PURE_JudgeImages: the same verdicts as transformers' CLIP and, on the miniature world, as its judge."""

import json
from types import SimpleNamespace

import comfy.clip_vision
import comfy.sd
import pytest
import torch
from pure_pack.nodes.host.clip_space import picture_vectors, text_vectors
from pure_pack.nodes.host.reporting import Progress
from pure_pack.nodes.judge import JudgeImages
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.zero_shot import NOTHING, cosines, probabilities
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel

import inprocess
from benchmarks.erasers import run
from mini_sd import clip as mini_clip
from mini_sd import studio
from mini_sd.world import CHARACTERS

OTHERS = [name for name in CHARACTERS if name != "zorbo"]
BOXES = {"forget": "zorbo", "keep": "\n".join(OTHERS)}


def by_loader(state):
    """A CLIP of a text model's tensors, as Load CLIP makes it of a file."""
    kind = comfy.sd.CLIPType.STABLE_DIFFUSION
    return inprocess.quick_clip(comfy.sd.load_text_encoder_state_dicts([state], clip_type=kind))


@pytest.fixture(scope="module")
def clip():
    return by_loader(mini_clip.text_state())


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    """The miniature tower in the host's own class; the host's loader knows towers of published sizes alone."""
    tower = comfy.clip_vision.ClipVisionModel(mini_clip.write_config(tmp_path_factory.mktemp("clip") / "tower.json"))
    missing, unexpected = tower.load_sd(mini_clip.vision_state())
    assert (missing, [k for k in unexpected if "position_ids" not in k]) == ([], [])
    return tower


@pytest.fixture(scope="module")
def pictures():
    """Prompts of every kind and what the unedited miniature model draws for them, (n, 64, 64, 3) as the host has
    pictures."""
    sets = studio.prompts()["test"]
    entries = [e for kind in ("named", "name_free") for name in CHARACTERS for e in sets[kind][name][:10]]
    entries += [e for name in CHARACTERS for e in sets["sharing"][name]["1"][:4]] + sets["shapes"][:32]
    drawn = studio.draw(studio.unet(), [e["prompt"] for e in entries], [e["seed"] for e in entries], steps=6)
    return drawn.movedim(1, -1)


def transformers_model():
    """transformers' CLIPModel with the weights that the host's two halves have."""
    layers = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {**layers, "hidden_act": "quick_gelu", "projection_dim": 768, "eos_token_id": 49407, "bos_token_id": 49406}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=mini_clip.CONFIG, projection_dim=768)).eval()
    state = {k: v.float() for k, v in {**mini_clip.text_state(), **mini_clip.vision_state()}.items()}
    missing, unexpected = model.load_state_dict({**state, "logit_scale": torch.tensor(100.0).log()}, strict=False)
    assert [k for k in (*missing, *unexpected) if "position_ids" not in k] == []
    return model


def test_it_is_transformers_clip(clip, eyes, pictures):
    texts, some = ["zorbo", "a picture of miplo", "a drawing", "a blue square creature with an antenna"], pictures[::24]
    ids = torch.tensor([studio.padded_ids(text) for text in texts])
    as_files = (some.movedim(-1, 1) * 255).round() / 255  # to which the host rounds pictures
    wanted = transformers_model()(input_ids=ids, pixel_values=mini_clip.pixels(as_files)).logits_per_image
    seen = picture_vectors(eyes, some, 768, Progress(None, len(some)))
    similar = cosines(seen, text_vectors(clip, texts))
    assert wanted.std() > 1
    assert_close(similar.float() * 100, wanted, rtol=0, atol=1e-3)
    assert_close(probabilities(similar).float(), wanted.softmax(-1), rtol=0, atol=1e-4)


def test_it_agrees_with_the_judge(clip, eyes, pictures):
    out = run(JudgeImages, before=pictures, after=pictures, clip=clip, clip_vision=eyes, **BOXES)
    told = [None if p["before"] == NOTHING else p["before"] for p in json.loads(out[2])["pictures"]]
    judged = [seen["character"] for seen in studio.look(pictures.movedim(-1, 1))]
    assert len({*judged}) == len(CHARACTERS) + 1
    agreed = sum(a == b for a, b in zip(told, judged, strict=True)) / len(judged)
    assert agreed >= 0.95, [(a, b) for a, b in zip(told, judged, strict=True) if a != b]


def test_it_counts_what_went_and_what_stayed(clip, eyes, pictures):
    """Four pictures of zorbo of which three become something else, four of another of which one does."""
    at = {name: 10 * i for i, name in enumerate(CHARACTERS)}
    zorbo, other, third = (pictures[at[name] : at[name] + 4] for name in ("zorbo", "miplo", "tarnik"))
    plain = pictures[-4:]
    before, after = torch.cat([zorbo, other]), torch.cat([zorbo[:1], plain[:3], other[:3], third[:1]])
    sheet, report, numbers = run(JudgeImages, before=before, after=after, clip=clip, clip_vision=eyes, **BOXES)
    numbers = json.loads(numbers)
    assert (numbers["target_before"]["hits"], numbers["target_after"]["hits"]) == (4, 1)
    assert (numbers["retention"]["hits"], numbers["retention"]["n"]) == (3, 4)
    assert report.startswith("Mostly gone: the concept is in 1 of 8 pictures; it was in 4.")
    assert sheet.shape[1] > 2 * 256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forget": " "}, "The forget box is empty"),
        ({"keep": "Zorbo"}, "in both lists"),
        ({"clip": None}, "There is no CLIP:"),
        ({"clip_vision": None}, "There is no CLIP_VISION"),
        ({"after": torch.full((4, 64, 64, 3), torch.nan)}, "are not numbers"),
        ({"after": torch.zeros(3, 64, 64, 3)}, "4 pictures before and 3 after"),
    ],
)
def test_mistakes_are_said(clip, eyes, pictures, change, said):
    inputs = {"before": pictures[:4], "after": pictures[:4], "clip": clip, "clip_vision": eyes, **BOXES}
    with pytest.raises(PureError, match=said):
        run(JudgeImages, **{**inputs, **change})


def test_a_tower_of_another_width_is_refused_with_the_name_of_the_file(clip, tmp_path, pictures):
    config = tmp_path / "tower.json"
    config.write_text(json.dumps({**mini_clip.CONFIG, "projection_dim": 1024}))
    other = comfy.clip_vision.ClipVisionModel(config)
    with pytest.raises(
        PureError, match=r"gives vectors of width 1024, the text 768\. Load model.safetensors of openai"
    ):
        run(JudgeImages, before=pictures[:1], after=pictures[:1], clip=clip, clip_vision=other, **BOXES)


def test_a_text_model_without_its_projection_is_refused(eyes, pictures):
    """As in SD 1.5 checkpoints: the host then has whatever was in memory there."""
    inputs = {"before": pictures[:8], "after": pictures[:8], "clip_vision": eyes, **BOXES}
    state = mini_clip.text_state()
    noise = torch.randn(768, 768, generator=torch.Generator().manual_seed(0))
    for projection in (torch.zeros(768, 768), torch.eye(768), noise):
        with pytest.raises(PureError, match="not two halves of one CLIP"):
            run(JudgeImages, clip=by_loader({**state, "text_projection.weight": projection}), **inputs)


def pooling(width, **projections):
    """A CLIP that gives pooled vectors of ones, with text models of these widths."""
    model = torch.nn.ModuleDict({name: torch.nn.ModuleDict() for name in projections})
    for i, (name, size) in enumerate(projections.items(), 2):
        model[name]["text_projection"] = torch.nn.Linear(size, size, bias=False)
        torch.nn.init.constant_(model[name]["text_projection"].weight, i)
    pooled = None if width is None else torch.ones(1, width)
    return SimpleNamespace(
        cond_stage_model=model, tokenize=str, encode_from_tokens=lambda tokens, return_pooled: (None, pooled)
    )


def test_of_two_text_models_the_one_that_was_pooled_is_projected():
    vectors = text_vectors(pooling(1280, clip_l=768, clip_g=1280), ["zorbo"])
    assert_close(vectors, torch.full((1, 1280), 3.0 * 1280))


@pytest.mark.parametrize(
    ("width", "models"), [(2048, {"clip_l": 768, "clip_g": 1280}), (None, {}), (768, {"clip_g": 1280})]
)
def test_texts_that_no_tower_belongs_to_are_refused(width, models):
    """Stable Diffusion 3 joins two text models; T5 pools nothing."""
    with pytest.raises(PureError, match="cannot be compared with pictures"):
        text_vectors(pooling(width, **models), ["zorbo"])
