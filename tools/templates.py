"""Writes the example workflows: nodes, wires and places from the lists below, widgets from the nodes' own defaults.

python templates.py        (in tools/; writes example_workflows/*.json)
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pack
import workflows

# Nodes of the host: sockets that come in and go out. The pack's are read from what a test keeps of their schemas.
HOST: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "CheckpointLoaderSimple": ([], [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")]),
    "UNETLoader": ([], [("MODEL", "MODEL")]),
    "CLIPLoader": ([], [("CLIP", "CLIP")]),
    "VAELoader": ([], [("VAE", "VAE")]),
    "CLIPTextEncode": ([("clip", "CLIP")], [("CONDITIONING", "CONDITIONING")]),
    "EmptyLatentImage": ([], [("LATENT", "LATENT")]),
    "EmptyHunyuanLatentVideo": ([], [("LATENT", "LATENT")]),
    "KSampler": (
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")],
        [("LATENT", "LATENT")],
    ),
    "VAEDecode": ([("samples", "LATENT"), ("vae", "VAE")], [("IMAGE", "IMAGE")]),
    "ImageBatch": ([("image1", "IMAGE"), ("image2", "IMAGE")], [("IMAGE", "IMAGE")]),
    "SaveImage": ([("images", "IMAGE")], []),
    "LoraLoaderModelOnly": ([("model", "MODEL")], [("MODEL", "MODEL")]),
    "MarkdownNote": ([], []),
}
NOTES = Path(__file__).with_name("notes")
API = json.loads((pack.PROJECT / "tests" / "nodes" / "api.json").read_text(encoding="utf-8"))
NOTE, FIRST, SECOND, THIRD = (40, 380), (460, 330), (830, 400), (1270, 390)  # columns: left edge and width
TOP, GAP, TITLE = 120, 60, 80  # of a column's first node, between nodes, of a group above its first node
GROUP = "#3f789e"
# Of the first view: right of the sidebar and below the bar with the workflow's name, at this scale.
SCALE, OFFSET = 0.8, [52, 34]
Wire = tuple["Node", str]


class Node:
    """A node on a canvas; node["name"] is the wire that comes out of it under that name."""

    def __init__(self, number: int, kind: str, bottom: float):
        self.number, self.kind, self.bottom = number, kind, bottom

    def __getitem__(self, output: str) -> Wire:
        return self, output


class Canvas:
    """A workflow in the frontend's format."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []
        self.groups: list[dict[str, Any]] = []

    def add(
        self,
        kind: str,
        column: tuple[int, int],
        top: float,
        height: int,
        widgets: list[Any] | dict[str, Any] | None = None,
        title: str | None = None,
        mode: int = 0,
        **wires: Wire,
    ) -> Node:
        """A node; widgets: all values of a host's node, or those of a pack's node that are not its defaults."""
        sockets, outputs, values = described(kind, widgets)
        number = len(self.nodes) + 1
        inputs = []
        for slot, (name, type_) in enumerate(sockets):
            link = None
            if name in wires:
                source, output = wires[name]
                at = [n for n, _ in described(source.kind)[1]].index(output)
                link = len(self.links) + 1
                self.links.append([link, source.number, at, number, slot, type_])
                self.nodes[source.number - 1]["outputs"][at]["links"].append(link)
            inputs.append({"name": name, "type": type_, "link": link})
        assert wires.keys() <= {name for name, _ in sockets}, (kind, wires.keys())
        node = {
            "id": number,
            "type": kind,
            "pos": [column[0], top],
            "size": [column[1], height],
            "flags": {},
            "order": number - 1,
            "mode": mode,
            "inputs": inputs,
            "outputs": [{"name": n, "type": t, "links": [], "slot_index": i} for i, (n, t) in enumerate(outputs)],
            "properties": {"Node name for S&R": kind},
            "widgets_values": values,
        }
        if kind in FOLDERS:
            model = {"name": values[0], "url": SOURCES[values[0]], "directory": FOLDERS[kind]}
            node["properties"] = {"Node name for S&R": kind, "models": [model]}
        self.nodes.append({**node, "title": title} if title else node)
        return Node(number, kind, top + height + GAP)

    def group(self, title: str, left: float, top: float, width: float, height: float) -> None:
        box = [left - 20, top - TITLE, width + 40, height + TITLE + 20]
        self.groups.append(
            {"id": len(self.groups) + 1, "title": title, "bounding": box, "color": GROUP, "font_size": 24, "flags": {}}
        )

    def workflow(self, name: str) -> dict[str, Any]:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": SCALE, "offset": OFFSET}},
            "version": 0.4,
        }


def described(kind: str, widgets: Any = None) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[Any]]:
    """Sockets in and out of a kind of node, and its widgets' values."""
    if kind in HOST:
        return *HOST[kind], list(widgets or [])
    own = API[kind]
    sockets = [(i[0], i[1]) for i in own["inputs"] if i[1] not in workflows.WIDGET_TYPES]
    defaults = {i[0]: i[2] for i in own["inputs"] if i[1] in workflows.WIDGET_TYPES}
    given = dict(widgets or {})
    assert given.keys() <= defaults.keys(), (kind, given.keys() - defaults.keys())
    values: list[Any] = []
    for name, value in {**defaults, **given}.items():
        values.append(value)
        if (kind, name) == ("PURE_CompareImages", "seed"):
            values.append("fixed")  # the frontend's own "after generate" widget
    return sockets, [(name, type_) for name, type_ in own["outputs"]], values


SD15, SDXL, TAGGED = (
    "v1-5-pruned-emaonly-fp16.safetensors",
    "sd_xl_base_1.0.safetensors",
    "Illustrious-XL-v0.1.safetensors",
)
WAN, UMT5, WAN_VAE = (
    "wan2.1_t2v_1.3B_fp16.safetensors",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "wan_2.1_vae.safetensors",
)
FOLDERS = {  # where loaders look for their files
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
}
HUB = "https://huggingface.co"
WAN_HUB = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
SOURCES = {  # where the frontend offers to download a file from
    SD15: f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15}?download=true",
    SDXL: f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}?download=true",
    TAGGED: f"{HUB}/OnomaAIResearch/Illustrious-xl-early-release-v0/resolve/main/{TAGGED}?download=true",
    WAN: f"{WAN_HUB}/diffusion_models/{WAN}?download=true",
    UMT5: f"{WAN_HUB}/text_encoders/{UMT5}?download=true",
    WAN_VAE: f"{WAN_HUB}/vae/{WAN_VAE}?download=true",
}
PIKACHU = """Pikachu
yellow mouse creature with pointed ears and red cheeks
little golden rodent with long ears, rosy cheeks and a zigzag tail
chubby yellow critter with black tipped ears and red round cheeks
electric mouse monster with a tail like lightning"""
LIKE_PIKACHU = "Charizard\nBulbasaur\nSquirtle\nStitch\nTotoro\nDoraemon\nSonic"
MEADOW = "a photo of Pikachu in a meadow"
LARGE = ("EmptyLatentImage", [1024, 1024, 1])
ROW = 1240  # where the second row of a tall workflow begins


def note_of(name: str) -> str:
    """The text of a workflow's note."""
    texts = [(NOTES / f"{part}.md").read_text(encoding="utf-8").strip() for part in (name, "what_next")]
    return texts[0].replace("{what_next}", texts[1])


Loaded = Mapping[str, Wire]  # where MODEL, CLIP and VAE come from


def checkpoint(canvas: Canvas, name: str) -> tuple[Loaded, float]:
    """A checkpoint's loader, and where the next node of its column begins."""
    loader = canvas.add("CheckpointLoaderSimple", FIRST, TOP, 110, [name])
    return {part: loader[part] for part in ("MODEL", "CLIP", "VAE")}, loader.bottom


FROM_SD15 = partial(checkpoint, name=SD15)


def wan(canvas: Canvas) -> tuple[Loaded, float]:
    """Wan's three loaders."""
    net = canvas.add("UNETLoader", FIRST, TOP, 82, [WAN, "default"])
    clip = canvas.add("CLIPLoader", FIRST, net.bottom, 106, [UMT5, "wan", "default"])
    vae = canvas.add("VAELoader", FIRST, clip.bottom, 58, [WAN_VAE])
    return {"MODEL": net["MODEL"], "CLIP": clip["CLIP"], "VAE": vae["VAE"]}, vae.bottom


def erasing(
    note: str,
    forget: str = PIKACHU,
    keep: str = LIKE_PIKACHU,
    prompt: str = MEADOW,
    load: Callable[[Canvas], tuple[Loaded, float]] = FROM_SD15,
    latent: tuple[str, list[int]] = ("EmptyLatentImage", [512, 512, 1]),
    scheduler: str = "normal",
    **widgets: Any,
) -> tuple[Canvas, Loaded, Node]:
    """The one node, and a picture by the MODEL that comes out of it; the canvas, what is loaded and the node."""
    canvas = Canvas()
    canvas.add("MarkdownNote", NOTE, TOP, 700, [note], "Read me")
    loaded, below = load(canvas)
    positive = canvas.add("CLIPTextEncode", FIRST, below, 130, [prompt], "Prompt", clip=loaded["CLIP"])
    negative = canvas.add("CLIPTextEncode", FIRST, positive.bottom, 110, [""], "Negative prompt", clip=loaded["CLIP"])
    empty = canvas.add(latent[0], FIRST, negative.bottom, 130, latent[1])
    erase = canvas.add(
        "PURE_EraseConcept",
        SECOND,
        TOP,
        960,
        {"forget": forget, "keep": keep, **widgets},
        model=loaded["MODEL"],
        clip=loaded["CLIP"],
        vae=loaded["VAE"],
    )
    parts = (positive, negative, empty, loaded)
    picture(canvas, THIRD, TOP, erase["model"], parts, "KSampler, edited MODEL", "pure/after", scheduler)
    canvas.group("1. Model, prompt", FIRST[0], TOP, FIRST[1], 960)
    canvas.group("2. Erase", SECOND[0], TOP, SECOND[1], 960)
    canvas.group("3. Your picture", THIRD[0], TOP, THIRD[1], 960)
    return canvas, loaded, erase


def picture(
    canvas: Canvas,
    column: tuple[int, int],
    top: float,
    model: Wire,
    parts: tuple[Node, Node, Node, Loaded],
    title: str,
    file: str,
    scheduler: str = "normal",
) -> Node:
    """A sampler, its decoder and a saved picture, one below the other."""
    positive, negative, latent, loaded = parts
    sampler = canvas.add(
        "KSampler",
        column,
        top,
        290,
        [1, "fixed", 20, 5.0, "euler", scheduler, 1.0],
        title,
        model=model,
        positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent_image=latent["LATENT"],
    )
    decoded = canvas.add("VAEDecode", column, sampler.bottom, 60, samples=sampler["LATENT"], vae=loaded["VAE"])
    return canvas.add("SaveImage", column, decoded.bottom, 400, [file], images=decoded["IMAGE"])


def start_here() -> Canvas:
    note = note_of("1_start_here_erase_a_concept")
    return erasing(note)[0]


def erase_a_style() -> Canvas:
    note = note_of("erase_a_style")
    forget = (
        "Vincent van Gogh\nVan Gogh\nthick swirling strokes of oil paint\n"
        "post-impressionist swirls in deep blue and yellow"
    )
    keep = (
        "a painting by Claude Monet\na painting by Rembrandt\na woodblock print by Hokusai\nan oil painting of a ship\n"
        "a watercolor of a garden\na photo of a cat\na portrait of a woman\na photo of a city street"
    )
    prompt = "a village at night by Vincent van Gogh"
    return erasing(note, forget, keep, prompt, kind="artistic style")[0]


def erase_several_concepts() -> Canvas:
    note = note_of("erase_several_concepts")
    forget = (
        "Pikachu\nyellow mouse creature with pointed ears and red cheeks\nTotoro\n"
        "big grey furry creature with a round white belly"
    )
    keep = "Charizard\nBulbasaur\nSquirtle\nStitch\nDoraemon\nSonic"
    return erasing(note, forget, keep, "a photo of Totoro in a meadow")[0]


def erase_with_sdxl() -> Canvas:
    note = note_of("erase_with_sdxl")
    forget = (
        "R2-D2\nsmall white and blue robot with a dome head\nround headed little droid with blue panels\n"
        "stubby astromech droid on three legs with a silver dome"
    )
    keep = "C-3PO\nBB-8\nWall-E\nBender\nBaymax\nOptimus Prime"
    prompt = "a photo of R2-D2 in a meadow"
    return erasing(note, forget, keep, prompt, partial(checkpoint, name=SDXL), LARGE, batch_size=2)[0]


def erase_with_tags() -> Canvas:
    note = note_of("erase_with_tags")
    forget = "hatsune miku\naqua hair, very long twintails, detached sleeves, necktie"
    keep = "kagamine rin\nmegurine luka\nkasane teto\ntwintails\naqua hair\ndetached sleeves"
    prompt = "masterpiece, best quality, 1girl, hatsune miku, city, night"
    load = partial(checkpoint, name=TAGGED)
    return erasing(note, forget, keep, prompt, load, LARGE, kind="booru tags", batch_size=2)[0]


def erase_with_wan() -> Canvas:
    note = note_of("erase_with_wan")
    frame = ("EmptyHunyuanLatentVideo", [832, 480, 1, 1])
    return erasing(note, load=wan, latent=frame, scheduler="simple", batch_size=2)[0]


def save_a_checkpoint() -> Canvas:
    note = note_of("save_a_checkpoint")
    canvas, loader, erase = erasing(note)
    parts = {"model": erase["model"], "clip": loader["CLIP"], "vae": loader["VAE"]}
    canvas.add("PURE_SaveCheckpoint", FIRST, ROW, 220, {}, **parts)
    canvas.group("4. Save the checkpoint", FIRST[0], ROW, FIRST[1], 220)
    return canvas


def save_as_lora_and_reuse() -> Canvas:
    note = note_of("save_as_lora_and_reuse")
    canvas, loader, erase = erasing(note)
    canvas.add("PURE_SaveLoRA", FIRST, ROW, 200, {}, model=erase["model"])
    reused = canvas.add(
        "LoraLoaderModelOnly",
        SECOND,
        ROW,
        130,
        ["pure_Pikachu_00001_.safetensors", 1.0],
        "Reuse: the original MODEL with the LoRA",
        workflows.BYPASSED,
        model=loader["MODEL"],
    )
    kinds = ("CLIPTextEncode", "CLIPTextEncode", "EmptyLatentImage")
    numbers = [n["id"] for n in canvas.nodes if n["type"] in kinds]
    parts = tuple(Node(number, kind, 0) for number, kind in zip(numbers, kinds, strict=True))
    title = "Original MODEL (LoRA if enabled)"
    picture(canvas, THIRD, ROW, reused["MODEL"], (*parts, loader), title, "pure/reloaded")
    canvas.group("4. Save as LoRA", FIRST[0], ROW, FIRST[1], 200)
    canvas.group("5. Use it on the original MODEL", SECOND[0], ROW, THIRD[0] + THIRD[1] - SECOND[0], 870)
    return canvas


def measure_and_compare() -> Canvas:
    note = note_of("measure_and_compare")
    canvas = Canvas()
    canvas.add("MarkdownNote", NOTE, TOP, 700, [note], "Read me")
    loader = canvas.add("CheckpointLoaderSimple", FIRST, TOP, 110, [SD15])
    probes = canvas.add(
        "PURE_ConceptPrompts",
        FIRST,
        loader.bottom,
        790,
        {
            "forget": "a happy yellow creature with red cheeks in a meadow\n"
            "small yellow animal with a jagged tail in a meadow",
            "keep": "Snorlax\nGarfield\nMickey Mouse\nHello Kitty\nWinnie the Pooh",
            "templates": "a photo of {}\na drawing of {}",
        },
        "Probes: gone? still there?",
    )
    lists = {"forget": PIKACHU, "keep": LIKE_PIKACHU}
    parts = {"model": loader["MODEL"], "clip": loader["CLIP"], "vae": loader["VAE"]}
    erase = canvas.add("PURE_EraseConcept", SECOND, TOP, 960, lists, **parts)
    models = {"original": loader["MODEL"], "edited": erase["model"], "clip": loader["CLIP"]}
    asked = {"concept_probes": probes["forget"], "keep_probes": probes["keep"]}
    canvas.add("PURE_MeasureLeakage", THIRD, TOP, 960, {}, **models, **asked)
    prompts = (
        "a photo of Pikachu in a meadow\na happy yellow creature with red cheeks in a meadow\na photo of Garfield\na "
        "photo of a mountain lake"
    )
    compared = canvas.add(
        "PURE_CompareImages", FIRST, ROW, 760, {"prompts": prompts, "seed": 1}, **models, vae=loader["VAE"]
    )
    canvas.add("SaveImage", SECOND, ROW, 400, ["pure/compared_before"], "Before", images=compared["before"])
    canvas.add("SaveImage", THIRD, ROW, 400, ["pure/compared_after"], "After", images=compared["after"])
    canvas.group("1. Checkpoint, probes", FIRST[0], TOP, FIRST[1], 960)
    canvas.group("2. Erase", SECOND[0], TOP, SECOND[1], 960)
    canvas.group("3. Is it gone?", THIRD[0], TOP, THIRD[1], 960)
    canvas.group("4. Before and after", FIRST[0], ROW, THIRD[0] + THIRD[1] - FIRST[0], 760)
    return canvas


def captured(note: str) -> tuple[Canvas, Node, dict[str, Wire]]:
    """The first row of the workflows without the one node: the canvas, the loader, and the three captures."""
    canvas = Canvas()
    canvas.add("MarkdownNote", NOTE, TOP, 700, [note], "Read me")
    loader = canvas.add("CheckpointLoaderSimple", FIRST, TOP, 110, [SD15])
    lists = canvas.add(
        "PURE_ConceptPrompts",
        FIRST,
        loader.bottom,
        790,
        {"forget": PIKACHU, "keep": LIKE_PIKACHU},
        "What to forget, what to keep",
    )
    parts = {"model": loader["MODEL"], "clip": loader["CLIP"]}
    forget = canvas.add(
        "PURE_CaptureActivations", SECOND, TOP, 420, {}, "Capture forget", **parts, prompts=lists["forget"]
    )
    keep = canvas.add(
        "PURE_CaptureActivations", SECOND, forget.bottom, 420, {}, "Capture keep", **parts, prompts=lists["keep"]
    )
    ordinary = canvas.add("PURE_CaptureOrdinary", THIRD, TOP, 420, {}, **parts)
    canvas.group("1. What to forget, what to keep", FIRST[0], TOP, FIRST[1], 960)
    canvas.group("2. What the MODEL renders for it, and for ordinary pictures", SECOND[0], TOP, 830, 960)
    return (
        canvas,
        loader,
        {"forget": forget["activations"], "keep": keep["activations"], "ordinary": ordinary["ordinary"]},
    )


def prompts_for(canvas: Canvas, column: tuple[int, int], top: float, loader: Node, batch: int) -> tuple[Node, ...]:
    positive = canvas.add("CLIPTextEncode", column, top, 130, [MEADOW], "Prompt", clip=loader["CLIP"])
    negative = canvas.add("CLIPTextEncode", column, positive.bottom, 110, [""], "Negative prompt", clip=loader["CLIP"])
    latent = canvas.add("EmptyLatentImage", column, negative.bottom, 130, [512, 512, batch])
    return positive, negative, latent, loader


def step_by_step() -> Canvas:
    note = note_of("step_by_step")
    canvas, loader, captures = captured(note)
    basis = canvas.add("PURE_BuildBasis", FIRST, ROW, 640, {}, **captures)
    edit = canvas.add("PURE_ApplyProjection", FIRST, basis.bottom, 280, {}, model=loader["MODEL"], basis=basis["basis"])
    before, after = (830, 310), (1270, 310)
    parts = prompts_for(canvas, NOTE, ROW, loader, 2)
    picture(canvas, before, ROW, loader["MODEL"], parts, "Original MODEL", "pure/before")
    picture(canvas, after, ROW, edit["model"], parts, "KSampler, edited MODEL", "pure/after")
    canvas.group("Prompt", NOTE[0], ROW, NOTE[1], 980)
    canvas.group("3. Erase", FIRST[0], ROW, FIRST[1], 980)
    canvas.group("4. Compare", SECOND[0], ROW, 830, 980)
    return canvas


def tune_the_amount() -> Canvas:
    note = note_of("tune_the_amount")
    canvas, loader, captures = captured(note)
    parts = prompts_for(canvas, (THIRD[0], 330), TOP + 420 + GAP, loader, 3)
    columns = ((NOTE[0], 400), (480, 400), (920, 400))
    drawn = []
    for column, weight, amount in zip(columns, (15.0, 1.5, 0.15), ("little", "middle", "much"), strict=True):
        basis = canvas.add("PURE_BuildBasis", column, ROW, 640, {"keep_weight": weight}, **captures)
        edit = canvas.add(
            "PURE_ApplyProjection", column, basis.bottom, 280, {}, model=loader["MODEL"], basis=basis["basis"]
        )
        positive, negative, latent, _ = parts
        sampler = canvas.add(
            "KSampler",
            column,
            edit.bottom,
            290,
            [1, "fixed", 20, 5.0, "euler", "normal", 1.0],
            f"{amount.capitalize()} is erased",
            model=edit["model"],
            positive=positive["CONDITIONING"],
            negative=negative["CONDITIONING"],
            latent_image=latent["LATENT"],
        )
        drawn.append(canvas.add("VAEDecode", column, sampler.bottom, 60, samples=sampler["LATENT"], vae=loader["VAE"]))
    sheet: Wire = drawn[0]["IMAGE"]
    top = float(ROW)
    for more in drawn[1:]:
        joined = canvas.add("ImageBatch", (1360, 300), top, 60, image1=sheet, image2=more["IMAGE"])
        sheet, top = joined["IMAGE"], joined.bottom
    canvas.add("SaveImage", (1360, 300), top, 600, ["pure/amounts"], "Little, middle, much", images=sheet)
    canvas.group("3. Little, middle, much", NOTE[0], ROW, 1280, 1450)
    canvas.group("4. All of them", 1360, ROW, 300, 1450)
    return canvas


TEMPLATES: dict[str, Callable[[], Canvas]] = {
    "1_start_here_erase_a_concept": start_here,
    **{
        make.__name__: make
        for make in (
            erase_a_style,
            erase_several_concepts,
            erase_with_sdxl,
            erase_with_tags,
            erase_with_wan,
            save_a_checkpoint,
            save_as_lora_and_reuse,
            measure_and_compare,
            step_by_step,
            tune_the_amount,
        )
    },
}


def text(name: str) -> str:
    """The file of an example workflow."""
    return json.dumps(TEMPLATES[name]().workflow(name), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for name in TEMPLATES:
        (workflows.EXAMPLES / f"{name}.json").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
