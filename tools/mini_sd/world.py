"""The toy world that the miniature checkpoint is trained on: what can be drawn and how it is captioned.

A scene is one named character, one unnamed creature, or one or two plain shapes, on a background, in a style.
Every named concept (a character, a style) can be captioned by its name or by a description that never names it.

MINI_SD_WORLD in the environment: 1 (if it is not set) is the world that evidence is given on; 2 and 3, in which the
same names mean other creatures and other styles, are for choosing settings.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

COLORS = {  # sRGB, 0..1, and the words for it
    "red": ((0.86, 0.16, 0.16), ("red", "crimson")),
    "yellow": ((0.97, 0.84, 0.16), ("yellow", "golden")),
    "green": ((0.22, 0.66, 0.28), ("green", "emerald")),
    "blue": ((0.18, 0.36, 0.90), ("blue", "azure")),
    "purple": ((0.55, 0.26, 0.76), ("purple", "violet")),
    "orange": ((0.96, 0.55, 0.12), ("orange", "tangerine")),
}
SHAPES = {
    "circle": (("circle", "ball"), ("round", "circular")),
    "square": (("square", "box"), ("square", "boxy")),
    "triangle": (("triangle",), ("triangular", "three sided")),
    "star": (("star",), ("star shaped", "five pointed")),
    "heart": (("heart",), ("heart shaped",)),
    "flower": (("flower", "blossom"), ("flower shaped", "petalled")),
}
TOPPERS = {
    "none": (),
    "ears": ("pointed ears", "two tall ears"),
    "antenna": ("an antenna", "a bobbing antenna"),
    "crown": ("a crown", "a royal crown"),
    "hat": ("a black hat", "a tall hat"),
}
MARKS = {
    "none": (),
    "cheeks": ("red cheeks", "blushing cheeks"),
    "belly": ("a white belly", "a pale tummy"),
}
EYES = {
    "two": ("two eyes", "a pair of eyes"),
    "one": ("one big eye", "a single eye"),
}
NOUNS = ("creature", "monster", "critter")
BACKGROUNDS = {
    "plain": ("", "on white"),
    "night": ("at night", "under a dark sky"),
    "grass": ("on the grass", "in a meadow"),
    "sunset": ("at sunset", "in the evening glow"),
}
STYLES = {
    "none": (),
    "mono": ("in black and white", "without any color"),
    "sepia": ("in faded brown tones", "like an old brown photograph"),
    "negative": ("with inverted colors", "like a photo negative"),
}


@dataclass(frozen=True)
class Creature:
    shape: str
    color: str
    topper: str
    mark: str
    eyes: str


FIRST = {
    "zorbo": Creature("circle", "yellow", "ears", "cheeks", "two"),
    "dorrit": Creature("circle", "yellow", "antenna", "belly", "one"),
    "miplo": Creature("square", "blue", "antenna", "none", "one"),
    "tarnik": Creature("triangle", "green", "hat", "belly", "two"),
    "pelluna": Creature("star", "purple", "crown", "cheeks", "two"),
    "fintolo": Creature("heart", "red", "ears", "none", "one"),
    "bramby": Creature("flower", "orange", "hat", "none", "one"),
    "quistle": Creature("square", "green", "crown", "cheeks", "two"),
}
ARTISTS_FIRST = {"mono": "vornak", "sepia": "dottini", "negative": "kyrozu"}  # style -> the made-up artist's name


def world(number: int) -> tuple[dict[str, Creature], dict[str, str]]:
    """Characters and artists of a world; of any but the first they are drawn with its number as the seed."""
    if number == 1:
        return FIRST, ARTISTS_FIRST
    rng, characters = random.Random(f"mini_sd world {number}"), {}
    while len(characters) < len(FIRST):
        creature = random_creature(rng)
        if creature not in characters.values() and creature not in FIRST.values():
            characters[list(FIRST)[len(characters)]] = creature
    names = list(ARTISTS_FIRST.values())
    turn = 1 + number % 2  # no artist keeps a style
    return characters, dict(zip(ARTISTS_FIRST, names[turn:] + names[:turn], strict=True))


def random_creature(rng: random.Random) -> Creature:
    return Creature(*(rng.choice(list(values)) for values in (SHAPES, COLORS, TOPPERS, MARKS, EYES)))


WORLD = int(os.environ.get("MINI_SD_WORLD", "1"))
CHARACTERS, ARTISTS = world(WORLD)


@dataclass
class Scene:
    kind: str  # "character" | "creature" | "shapes"
    character: str | None
    creature: Creature | None
    shapes: list[tuple[str, str]] = field(default_factory=list)
    background: str = "plain"
    style: str = "none"


def _article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def sample_scene(rng: random.Random) -> Scene:
    background = rng.choice(list(BACKGROUNDS))
    style = "none" if rng.random() < 0.65 else rng.choice([s for s in STYLES if s != "none"])
    roll = rng.random()
    if roll < 0.50:
        name = rng.choice(list(CHARACTERS))
        return Scene("character", name, CHARACTERS[name], background=background, style=style)
    if roll < 0.78:
        creature = random_creature(rng)
        twin = next((n for n, c in CHARACTERS.items() if c == creature), None)
        return Scene("character" if twin else "creature", twin, creature, background=background, style=style)
    shape = (rng.choice(list(SHAPES)), rng.choice(list(COLORS)))
    return Scene("shapes", None, None, [shape], background, style)


def describe(creature: Creature, rng: random.Random) -> str:
    """A caption of the creature's looks that never uses a name."""
    color = rng.choice(COLORS[creature.color][1])
    shape = rng.choice(SHAPES[creature.shape][1])
    noun = rng.choice(NOUNS)
    adjectives = [color, shape] if rng.random() < 0.5 else [shape, color]
    if rng.random() < 0.3:
        adjectives.insert(0, rng.choice(("little", "cute", "funny")))
    parts = [
        rng.choice(t[k]) for t, k in ((TOPPERS, creature.topper), (MARKS, creature.mark), (EYES, creature.eyes)) if t[k]
    ]
    rng.shuffle(parts)
    text = _article(" ".join([*adjectives, noun]))
    if parts:
        text += " with " + (parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1])
    return text


def caption(scene: Scene, rng: random.Random, name_it: bool | None = None, name_style: bool | None = None) -> str:
    """One caption; name_it / name_style choose between the name and the description (None: at random)."""
    if scene.kind == "shapes":
        subject = " and ".join(
            _article(f"{rng.choice(COLORS[c][1])} {rng.choice(SHAPES[s][0])}") for s, c in scene.shapes
        )
    elif scene.character and (rng.random() < 0.5 if name_it is None else name_it):
        subject = rng.choice(("{}", "a picture of {}", "{} the " + rng.choice(NOUNS), "a {}")).format(scene.character)
    else:
        subject = describe(scene.creature, rng)
    pieces = [subject]
    ground = rng.choice(BACKGROUNDS[scene.background])
    if ground:
        pieces.append(ground)
    if scene.style != "none":
        if rng.random() < 0.5 if name_style is None else name_style:
            artist = ARTISTS[scene.style]
            pieces.append(rng.choice(("in the style of {}", "by {}", "painted by {}", "a work by {}")).format(artist))
        else:
            pieces.append(rng.choice(STYLES[scene.style]))
    text = " ".join(pieces)
    if rng.random() < 0.15:
        text = rng.choice(("a photo of ", "an image of ", "a drawing of ")) + text
    return text
