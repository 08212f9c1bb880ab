"""Example workflows for tests and demo: the shipped UI-format files with checkpoint, prompts and sizes of the miniature
model, as API graphs.

SUBSTITUTIONS is all that ever differs from what a user loads.
"""

from __future__ import annotations

import json
from pathlib import Path

from mini_sd import ordinary

EXAMPLES = Path(__file__).resolve().parent.parent / "example_workflows"
BYPASSED = 4  # a node's `mode`
ORDER = (
    "step_by_step",
    "tune_the_amount",
    "1_start_here_erase_a_concept",
    "save_a_checkpoint",
    "save_as_lora_and_reuse",
    "measure_and_compare",
    "erase_with_sdxl",
    "erase_with_tags",
)  # each captures what the one before did, and the host still has it
ORDINARY = 48  # captions of ordinary pictures: encoding one takes a CPU as long as sampling five steps
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

ERASED = (
    "miplo",
    "blue square creature with an antenna and one big eye",
    "boxy azure monster with a bobbing antenna and a single eye",
)
NEIGHBOURS = ("zorbo", "dorrit", "tarnik", "pelluna", "fintolo", "bramby", "quistle")
SUBSTITUTIONS = {  # what the shipped file says -> what the miniature model understands
    "v1-5-pruned-emaonly-fp16.safetensors": "mini_sd.safetensors",
    (
        "Pikachu\nyellow mouse creature with pointed ears and red cheeks\nlittle golden rodent with long ears, rosy "
        "cheeks and a zigzag tail\nchubby yellow critter with black tipped ears and red round cheeks\nelectric mouse "
        "monster with a tail like lightning"
    ): "\n".join(ERASED),
    "a happy yellow creature with red cheeks in a meadow\nsmall yellow animal with a jagged tail in a meadow": (
        "a funny square blue monster with a single eye and an antenna in a meadow\nboxy azure critter with one big "
        "eye and an antenna in a meadow"
    ),
    "Snorlax\nGarfield\nMickey Mouse\nHello Kitty\nWinnie the Pooh": "bramby",
    (
        "a photo of Pikachu in a meadow\na happy yellow creature with red cheeks in a meadow\na photo of Garfield\na "
        "photo of a mountain lake"
    ): "a picture of miplo in a meadow\na picture of bramby",
    "Charizard\nBulbasaur\nSquirtle\nStitch\nTotoro\nDoraemon\nSonic": "\n".join(NEIGHBOURS),
    (
        "Pikachu\nyellow mouse creature with pointed ears and red cheeks\nTotoro\nbig grey furry creature with a "
        "round white belly"
    ): "miplo\npelluna",
    "Charizard\nBulbasaur\nSquirtle\nStitch\nDoraemon\nSonic": "zorbo\nbramby",
    "a photo of Pikachu in a meadow": "a picture of miplo in a meadow",
    "a photo of Totoro in a meadow": "a picture of pelluna in a meadow",
    "sd_xl_base_1.0.safetensors": "mini_sd.safetensors",
    (
        "R2-D2\nsmall white and blue robot with a dome head\nround headed little droid with blue panels\nstubby "
        "astromech droid on three legs with a silver dome"
    ): "\n".join(ERASED),  # as in the first example, so that the host still has the captures
    "C-3PO\nBB-8\nWall-E\nBender\nBaymax\nOptimus Prime": "\n".join(NEIGHBOURS),
    "a photo of R2-D2 in a meadow": "a picture of miplo at night",
    "Illustrious-XL-v0.1.safetensors": "mini_sd.safetensors",
    "booru tags": "object or character",  # the miniature model knows no tags
    "hatsune miku\naqua hair, very long twintails, detached sleeves, necktie": "\n".join(ERASED),
    "kagamine rin\nmegurine luka\nkasane teto\ntwintails\naqua hair\ndetached sleeves": "\n".join(NEIGHBOURS),
    "masterpiece, best quality, 1girl, hatsune miku, city, night": "a picture of miplo at sunset",
    (
        "Vincent van Gogh\nVan Gogh\nthick swirling strokes of oil paint\npost-impressionist swirls in deep blue and "
        "yellow"
    ): "vornak\nblack and white",
    (
        "a painting by Claude Monet\na painting by Rembrandt\na woodblock print by Hokusai\nan oil painting of a "
        "ship\na watercolor of a garden\na photo of a cat\na portrait of a woman\na photo of a city street"
    ): (
        "a painting by dottini\nzorbo by kyrozu\na picture of miplo\na picture of zorbo in a meadow\na picture of "
        "pelluna in a meadow\na red circle in a meadow"
    ),
    "a village at night by Vincent van Gogh": "zorbo in a meadow by vornak",
    ("PURE_ConceptPrompts", ""): "{}\na picture of {}\na painting by {}",  # its templates
    "wan2.1_t2v_1.3B_fp16.safetensors": "mini_wan.safetensors",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": "mini_clip_l.safetensors",
    "wan": "sd3",  # the type of that text encoder
    "wan_2.1_vae.safetensors": "mini_taew2_1.safetensors",
    512: 64,
    1024: 64,
    832: 64,
    480: 64,
    (
        "PURE_CaptureActivations",
        4,
    ): 16,  # its batch_size, the only 4 there: small latents leave two cores idle otherwise
    ("PURE_CaptureActivations", 10): 5,  # its steps and recorded_steps
    ("EmptyLatentImage", 2): 1,
    ("PURE_EraseConcept", 0): 64,  # its size and its seed, which is then 64
    ("PURE_EraseConcept", 4): 16,  # its batch_size (for SDXL: 2)
    ("PURE_EraseConcept", 2): 16,
    ("PURE_EraseConcept", "", -2): "\n".join(ordinary.captions(ORDINARY, styled=0.0)),
    ("PURE_CaptureOrdinary", ""): "\n".join(ordinary.captions(ORDINARY, styled=0.0)),
    ("PURE_CaptureOrdinary", 0): 64,  # its size
    ("PURE_CaptureOrdinary", 4): 16,
    ("PURE_EraseConcept", 10): 4,  # its steps
    ("KSampler", 20): 10,
    ("PURE_CompareImages", 20): 10,
}


def load(name: str) -> dict:
    """A shipped example workflow, in the frontend's format."""
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def names() -> list[str]:
    """Of all shipped example workflows: those of ORDER, then those with captures of their own."""
    found = sorted(path.stem for path in EXAMPLES.glob("*.json"))
    return sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def substitute(workflow: dict, table: dict = SUBSTITUTIONS) -> dict:
    """The same workflow with widget values replaced where the table names them whole.

    Alone, with the node's type, or also with the place of the widget, from the last one, -1, backwards.
    """
    out = json.loads(json.dumps(workflow))
    for node in out["nodes"]:
        values = node.get("widgets_values", [])
        node["widgets_values"] = [
            table.get(entry_of(node["type"], v, i - len(values), table), v) for i, v in enumerate(values)
        ]
    return out


def entry_of(kind: str, value, place: int, table: dict = SUBSTITUTIONS):
    """The table's key for a widget value of a node of that type at that place; None for a value that stays."""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        return None
    return next((key for key in ((kind, value, place), (kind, value), value) if key in table), None)


def to_api(workflow: dict, object_info: dict) -> dict:
    """The API graph that the frontend would queue for a UI-format workflow without subgraphs or reroutes.

    Bypassed nodes hand on their input of the same type.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    for node in workflow["nodes"]:
        if node["mode"] == BYPASSED:
            for output in node["outputs"]:
                source = next(i["link"] for i in node["inputs"] if i["type"] == output["type"])
                links.update(dict.fromkeys(output["links"], links[source]))
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] not in object_info or node["mode"] == BYPASSED:  # notes and other frontend-only nodes
            continue
        linked = {i["name"]: links[i["link"]] for i in node.get("inputs", []) if i.get("link") is not None}
        values, inputs = iter(node.get("widgets_values", [])), {}
        sections = object_info[node["type"]]["input"]
        for name, spec in [item for section in ("required", "optional") for item in sections.get(section, {}).items()]:
            options = spec[1] if len(spec) > 1 else {}
            if (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES) and not options.get("forceInput"):
                inputs[name] = next(values)
                if options.get("control_after_generate", name in ("seed", "noise_seed")):
                    next(values)  # the frontend's own "after generate" widget
            if name in linked:
                inputs[name] = linked[name]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def find(graph: dict, class_type: str) -> list[str]:
    """Ids of the nodes of a type, in order."""
    return [i for i, node in graph.items() if node["class_type"] == class_type]


def upstream(graph: dict, node: str) -> dict:
    """The part of a graph that a node needs, itself included."""
    kept = {node: graph[node]}
    for value in graph[node]["inputs"].values():
        if isinstance(value, list):
            kept.update(upstream(graph, value[0]))
    return kept
