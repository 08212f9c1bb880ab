"""Concepts times templates -> anchor prompts."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import PureError

# Six phrasings a concept, as the paper's 54 retain anchors for nine neighbours suggest; its own wordings beyond
# "a photo of" and "a picture of" are not published, so these are our choice.
PRESETS: dict[str, tuple[str, ...]] = {
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
    "free text": ("{}",),
}
ROLES = ("forget", "retain")
EMPTY = "the empty prompt"  # the concept name under which the unconditional branch is protected


@dataclass(frozen=True)
class Prompts:
    """Anchor prompts of one role: (concept, prompt) pairs in a fixed order."""

    role: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The distinct concepts, in order."""
        return tuple(dict.fromkeys(concept for concept, _ in self.pairs))


def fold(text: str) -> str:
    """The form in which two spellings of a concept are the same: case and runs of white space do not count."""
    return " ".join(text.split()).casefold()


def read_lines(text: str) -> tuple[list[str], int, int]:
    """Distinct lines of a text box in order, how many were blank, and how many repeated an earlier one."""
    kept: dict[str, str] = {}
    lines = text.splitlines()
    blank = sum(not line.strip() for line in lines)
    for line in lines:
        if line.strip():
            kept.setdefault(fold(line), " ".join(line.split()))
    return list(kept.values()), blank, len(lines) - blank - len(kept)


def make_prompts(
    concepts: str,
    preset: str = "object or character",
    role: str = "forget",
    include_empty_prompt: bool = True,
    templates: str = "",
) -> tuple[Prompts, str]:
    """Anchor prompts of the concepts in a text box (one a line), and a listing to read.

    templates: one a line with `{}` where the concept goes; empty: the preset's six. include_empty_prompt adds the empty
    prompt to a retain set (it protects the unconditional half of classifier-free guidance). Raises PureError.
    """
    if preset not in PRESETS:
        raise PureError(f"preset is {preset!r}, and there are only: {', '.join(PRESETS)}.")
    if role not in ROLES:
        raise PureError(f"role is {role!r}, and there are only: {', '.join(ROLES)}.")
    names, blank, repeated = read_lines(concepts)
    forms, _, _ = read_lines(templates)
    forms = list(PRESETS[preset]) if not forms or preset == "free text" else forms
    for form in forms:
        if form.count("{}") != 1 or form.replace("{}", "").strip("{}") != form.replace("{}", ""):
            raise PureError(f"The template {form!r} needs {{}} exactly once, where the concept goes.")
    pairs = [(name, form.replace("{}", name)) for name in names for form in forms]
    if role == "retain" and include_empty_prompt:
        pairs.append((EMPTY, ""))
    if not pairs:
        raise PureError("There are no prompts: write one concept per line into `concepts`.")
    head = f"{role}: {len(names)} concept{'s' * (len(names) != 1)}, {len(pairs)} prompts"
    ignored = [
        f"{n} {what} line{'s' * (n != 1)} ignored" for n, what in ((blank, "blank"), (repeated, "repeated")) if n
    ]
    listing = "\n".join(
        [head + "".join(f"; {i}" for i in ignored), *(prompt or "(empty prompt)" for _, prompt in pairs)]
    )
    return Prompts(role, tuple(pairs)), listing
