"""Concepts times templates -> anchor prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from .activations import Role
from .basis import check_offered
from .errors import PureError

# Six phrasings a concept, as the paper's 54 retain anchors for nine neighbours suggest; its own wordings beyond
# "a photo of" and "a picture of" are not published, so these are our choice.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "object or character": ("{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "a {}"),
    "artistic style": (
        "a picture in the style of {}",
        "a painting by {}",
        "an image in the style of {}",
        "artwork by {}",
        "a work by {}",
        "{} style",
    ),
    "person": ("{}", "a photo of {}", "a picture of {}", "a portrait of {}", "a close-up of {}", "an image of {}"),
    "unsafe content": ("{}", "a photo of {}", "a picture of {}", "an image showing {}", "a scene of {}", "people, {}"),
    "booru tags": (
        "{}",
        "1girl, {}",
        "solo, {}",
        "{}, looking at viewer",
        "masterpiece, best quality, {}",
        "{}, simple background",
    ),
    "free text": ("{}",),
}
# What is kept beside a style is as much subjects as other artists: there each line is a whole prompt.
WHOLE_PROMPTS_TO_KEEP = ("artistic style",)
EMPTY = "the empty prompt"  # the concept name under which the unconditional branch is protected
PLACE = "{}"  # where the concept goes in a template
EMPHASIS = re.compile(
    r"(?<!\\)\([^():]*(?<!\\)\)"
)  # what the host reads as emphasis, without a weight that would say so


@dataclass(frozen=True)
class Prompts:
    """Anchor prompts of one role: (concept, prompt) pairs in a fixed order."""

    role: Role
    pairs: tuple[tuple[str, str], ...]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The distinct concepts, in order."""
        return tuple(dict.fromkeys(concept for concept, _ in self.pairs))

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt, in order."""
        return tuple(text for _, text in self.pairs)


def fold(text: str) -> str:
    """The form in which two spellings of a concept are the same: case and runs of white space do not count."""
    return " ".join(text.split()).casefold()


class Lines(NamedTuple):
    """Distinct lines of a text box in order, how many were blank, and how many repeated an earlier one."""

    lines: list[str]
    blank: int
    repeated: int


def read_lines(text: str) -> Lines:
    """The lines of a text box; white space at the ends and in runs does not count."""
    kept: dict[str, str] = {}
    lines = text.splitlines()
    blank = sum(not line.strip() for line in lines)
    for line in lines:
        if line.strip():
            kept.setdefault(fold(line), " ".join(line.split()))
    return Lines(list(kept.values()), blank, len(lines) - blank - len(kept))


def make_prompts(
    forget: str, keep: str, kind: str = "object or character", keep_empty_prompt: bool = True, templates: str = ""
) -> tuple[Prompts, Prompts, str]:
    """Anchor prompts of two text boxes (one concept a line): what to forget, what to keep, and a listing to read.

    templates: one a line with `{}` where the concept goes; empty: the kind's six. keep_empty_prompt adds the empty
    prompt to what to keep (it protects the unconditional half of classifier-free guidance). Raises PureError.
    """
    boxes = {"forget": read_lines(forget), "keep": read_lines(keep)}
    if not boxes["forget"].lines:
        raise PureError(
            "The forget box is empty. Write there what to erase: its name, and below it lines that describe it."
        )
    refuse_shared(boxes["forget"].lines, boxes["keep"].lines)
    to_forget = anchor_prompts(forget, "forget", kind, templates)
    to_keep = anchor_prompts(keep, "retain", kind, templates, keep_empty_prompt)
    refuse_shared(to_forget.texts, to_keep.texts)
    listing = [
        f"Warning: ComfyUI reads the parentheses in {line!r} as emphasis. Write {escaped(line)} for the characters."
        for found in boxes.values()
        for line in found.lines
        if EMPHASIS.search(line)
    ]
    for (box, found), prompts in zip(boxes.items(), (to_forget, to_keep), strict=True):
        listing += list_box(box, found, prompts)
    return to_forget, to_keep, "\n".join(listing)


def anchor_prompts(
    concepts: str,
    role: Role,
    kind: str = "object or character",
    templates: str = "",
    keep_empty_prompt: bool = False,
) -> Prompts:
    """The anchor prompts of one text box; see make_prompts."""
    check_offered("kind", kind, tuple(PHRASINGS))
    whole = kind == "free text" or (role == "retain" and kind in WHOLE_PROMPTS_TO_KEEP)
    own = [] if whole else read_lines(templates).lines
    for form in own:
        check_template(form)
    forms = own or ((PLACE,) if whole else PHRASINGS[kind])
    pairs = [(line, form.replace(PLACE, line)) for line in read_lines(concepts).lines for form in forms]
    return Prompts(role, (*pairs, *([(EMPTY, "")] if keep_empty_prompt else [])))


def check_template(form: str) -> None:
    """Raises PureError unless a template has one place for the concept; other braces are the frontend's choices."""
    if form.count(PLACE) != 1 or "{{}" in form or "{}}" in form:
        raise PureError(f"The template {form!r} needs {PLACE} exactly once, where the concept goes.")


def escaped(text: str) -> str:
    """The text with its parentheses as characters and not as emphasis."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", text)


def refuse_shared(forget: Iterable[str], keep: Iterable[str]) -> None:
    """Raises PureError where a line is to be forgotten and kept at once, which would erase nothing."""
    both = in_both(forget, keep)
    if both:
        names = ", ".join(repr(text) for text in both[:3]) + (f" and {len(both) - 3} more" if len(both) > 3 else "")
        raise PureError(f"{names}: in both lists, to forget and to keep. Remove it from one of them.")


def refuse_same(forget: Iterable[str], instead: Iterable[str]) -> None:
    """Raises PureError where what is to be drawn instead of a concept is the concept."""
    both = in_both(forget, instead)
    if both:
        raise PureError(f"{both[0]!r} is to be erased and to be drawn instead. Write something else to draw instead.")


def in_both(texts: Iterable[str], others: Iterable[str]) -> list[str]:
    """The texts that are also among others, however they are spelled there."""
    known = {fold(text) for text in others}
    return [text for text in texts if fold(text) in known]


def list_box(box: str, found: Lines, prompts: Prompts) -> list[str]:
    """The listing of one box: a line that counts, then every prompt."""
    count = len(found.lines)
    counted = ((found.blank, "blank"), (found.repeated, "repeated"))
    ignored = "".join(f"; {n} {what} line{'s' * (n != 1)} ignored" for n, what in counted if n)
    head = f"{box}: {count} concept{'s' * (count != 1)}, {len(prompts.pairs)} prompts{ignored}"
    return [head, *(text or "(empty prompt)" for text in prompts.texts)]
