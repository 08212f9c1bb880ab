"""The toy world is reproduced: captions and token ids exactly, pictures within 2/255, and the judge knows them."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mini_sd import studio
from mini_sd.make_prompts import build, entries
from mini_sd.render import encode, render
from mini_sd.world import ARTISTS, CHARACTERS, Creature, Scene, caption, sample_scene, world

FIXTURES = Path(__file__).parent / "fixtures"
TOOLS = Path(studio.__file__).parent.parent
RECORD = json.loads((FIXTURES / "fixtures.json").read_text())
ROWS = RECORD["rows"]


def scene_of(row):
    values = dict(row["scene"])
    values["creature"] = Creature(**values["creature"]) if values["creature"] else None
    values["shapes"] = [tuple(s) for s in values["shapes"]]
    return Scene(**values)


def test_captions_and_token_ids_are_reproduced_exactly():
    for row in ROWS:
        scene = scene_of(row)
        assert encode([scene])[0].tolist() == row["encoded"]
        assert caption(scene, random.Random(row["caption_seed"])) == row["caption"]
        assert studio.token_ids(row["caption"]) == row["token_ids"]


def test_pictures_are_reproduced():
    drawn = render(encode([scene_of(r) for r in ROWS]), torch.Generator().manual_seed(RECORD["render_seed"]))
    stored = [np.asarray(Image.open(FIXTURES / r["picture"]), dtype=np.float32) for r in ROWS]
    difference = np.abs(np.stack(stored) / 255 - drawn.permute(0, 2, 3, 1).numpy())
    assert difference.max() <= 2 / 255 + 1e-6
    assert np.abs(stored[0] / 255 - drawn[1].permute(1, 2, 0).numpy()).max() > 0.1  # control: another picture


def test_the_judge_is_right_on_fresh_drawings():
    rng = random.Random(2026)
    scenes = [sample_scene(rng) for _ in range(600)]
    seen = studio.look(render(encode(scenes), torch.Generator().manual_seed(1)))
    right = {
        k: np.mean([getattr(s, k) == v[k] for s, v in zip(scenes, seen, strict=True)])
        for k in ("character", "style", "background")
    }
    assert min(right.values()) >= 0.97, right


def test_choose_and_test_prompts_are_disjoint_and_name_free_ones_name_nobody():
    splits = studio.prompts()
    assert set(splits) == {"choose", "test"}
    for what in ("prompt", "seed"):
        choose, test = ({e[what] for e in entries(splits[split])} for split in ("choose", "test"))
        assert len(choose) > 500
        assert len(test) > 3000
        assert not choose & test
    for split in splits.values():
        words = {w for name in CHARACTERS for e in split["name_free"][name] for w in e["prompt"].split()}
        assert not words & {*CHARACTERS, *ARTISTS.values()}
        assert all(name in e["prompt"].split() for name in CHARACTERS for e in split["named"][name])


@pytest.fixture(scope="module")
def unet():
    return studio.unet()


def draw(unet, entries):
    return studio.look(studio.draw(unet, [e["prompt"] for e in entries], [e["seed"] for e in entries], steps=8))


def test_the_unedited_model_draws_what_captions_ask_for(unet):
    """1.00 of everything is claimed; of 100 or so, 97 % leaves room for sampling error only."""
    test = studio.prompts()["test"]
    asked = [(name, kind, e) for kind in ("named", "name_free") for name in CHARACTERS for e in test[kind][name][:6]]
    seen = draw(unet, [e for _, _, e in asked])
    assert np.mean([s["character"] == n for s, (n, _, _) in zip(seen, asked, strict=True)]) >= 0.97
    assert np.mean([s["background"] == e["background"] for s, (_, _, e) in zip(seen, asked, strict=True)]) >= 0.97
    styled = [e for kind in ("style_named", "style_name_free") for style in ARTISTS for e in test[kind][style][:8]]
    assert np.mean([s["style"] == e["style"] for s, e in zip(draw(unet, styled), styled, strict=True)]) >= 0.95
    nobody = test["shapes"][:24] + [e for name in CHARACTERS for k in "123" for e in test["sharing"][name][k][:1]]
    assert np.mean([s["character"] is None for s in draw(unet, nobody)]) >= 0.95


def test_the_judge_of_attributes_sees_what_captions_ask_for(unet):
    test = studio.prompts()["test"]
    entries = [*test["shapes"][:48], *(e for name in CHARACTERS for e in test["named"][name][:6])]
    seen = studio.examine(studio.draw(unet, [e["prompt"] for e in entries], [e["seed"] for e in entries], steps=8))
    shapes, characters = seen[:48], seen[48:]
    assert (
        np.mean(
            [
                (s["kind"], s["shape"], s["color"]) == ("shapes", e["shape"], e["color"])
                for s, e in zip(shapes, entries[:48], strict=True)
            ]
        )
        >= 0.95
    )
    looks = [CHARACTERS[name] for name in CHARACTERS for _ in range(6)]
    for part in ("color", "shape", "topper", "mark", "eyes"):
        assert np.mean([s[part] == getattr(look, part) for s, look in zip(characters, looks, strict=True)]) >= 0.95, (
            part
        )
        assert len({s[part] for s in characters}) > 1  # control: it does not say one thing always


def test_the_same_prompts_and_seeds_give_the_same_pictures(unet):
    texts, seeds = ["zorbo at night", "a picture of miplo"], [1, 2]
    one, two = (studio.draw(unet, texts, seeds, steps=4) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, studio.draw(unet, texts, [3, 4], steps=4))


def test_the_stored_prompts_are_what_make_prompts_writes():
    assert build() == studio.prompts()


def train(module, *arguments):
    """Runs one of the training commands of tools/mini_sd, each in a process of its own as on a command line: some
    change how the host's modules are trained."""
    command = [sys.executable, "-m", f"mini_sd.{module}", *(str(a) for a in arguments)]
    done = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_training_code_still_runs(tmp_path):
    """Seconds of each command, from drawings to all the files of weights, with the shapes of those that are kept."""
    seconds = [a for of in ("", "vae-", "judge-") for a in (f"--{of}seconds", 1)]
    small = ["--count", 32, "--out", tmp_path]
    train("train", *seconds, *small, "--batch", 4, "--vae-batch", 4, "--workers", 1)
    train("train_attributes", "--out", tmp_path, "--steps", 1)
    train("train_clip", "--out", tmp_path, "--steps", 1, "--scenes", 8)
    for kind in ("wan", "sd3", "zimage"):
        train("train_dit", kind, "--seconds", 1, *small, "--captions", 2)
    train("taehv", "--decoder-seconds", 1, "--encoder-seconds", 1, *small, "--batch", 2)
    made, kept = (
        {p.name: {k: v.shape for k, v in load_file(p).items()} for p in folder.glob("*.safetensors")}
        for folder in (tmp_path, studio.WEIGHTS)
    )
    assert made.keys() == kept.keys()
    for name in made:
        assert made[name] == kept[name], name


OTHER = """
import sys
from benchmarks import judging
from mini_sd import narrow, studio
from mini_sd.world import CHARACTERS
if sys.argv[1] == "first":
    studio.TUNED = narrow.TUNED = narrow.WEIGHTS
entries = [e for c in CHARACTERS for e in judging.character_entries(c, "test", 3, 0, 0, 0) if e["group"] != "styles"]
pictures = studio.draw(studio.unet(), [e["prompt"] for e in entries], [e["seed"] for e in entries], steps=10)
seen = [{**e, "after": s} for e, s in zip(entries, judging.judged(pictures))]
print(sum(judging.right(e) for e in seen), len(seen))
"""


@pytest.mark.parametrize("number", [2, 3])
def test_the_other_worlds_have_characters_of_their_own_and_draw_them(number):
    characters, artists = world(number)
    assert characters.keys() == CHARACTERS.keys()
    assert len(set(characters.values()) | set(CHARACTERS.values())) == 2 * len(CHARACTERS)
    assert all(artists[style] != ARTISTS[style] for style in ARTISTS)
    assert world(number) == (characters, artists)
    shares = {}
    for weights in ("own", "first"):
        command, environment = [sys.executable, "-c", OTHER, weights], {**os.environ, "MINI_SD_WORLD": str(number)}
        out = subprocess.run(command, cwd=TOOLS, env=environment, check=True, capture_output=True, text=True).stdout
        hits, n = map(int, out.split())
        assert n == 6 * len(CHARACTERS)
        shares[weights] = hits / n
    assert shares["own"] >= 0.94
    assert shares["first"] <= 0.7  # control: these are not the first world's (descriptions alone are drawn there, too)
