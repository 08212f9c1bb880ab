"""Reading safetensors files that may be a stranger's: bounded before anything parses them, typed, refused in words."""

from __future__ import annotations

import contextlib
import json
import math
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from safetensors import SafetensorError

from .errors import PureError

# A basis of SDXL with a thousand prompts has a header of .2 MB, 70 sites and names of 60 characters.
MOST_HEADER, MOST_SITES, MOST_TEXT, MOST_ITEMS = 4 * 2**20, 2048, 4096, 20_000
LOADERS = {"pure-basis": "PURE Load Basis", "pure-activations": "PURE Load Activations"}  # format -> its node


@contextlib.contextmanager
def reading(source: Path, what: str, again: str) -> Iterator[None]:
    """Whatever goes wrong in the block is a PureError that names the file: it is not `what`, do `again`."""
    try:
        yield
    except FileNotFoundError:
        raise PureError(f"There is no file {source.name}. Choose one from the list.") from None
    except PureError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
        raise PureError(f"{source.name} is not {what}, or it is damaged ({type(error).__name__}). {again}.") from None


def check_file(source: Path, most: int | None = None) -> None:
    """Before anything parses it: raises unless this is a regular file with a header no larger than the pack's files
    have, and of at most so many bytes."""
    found = source.stat()
    if not stat.S_ISREG(found.st_mode):
        raise PureError(f"{source.name} is no file. Choose another one from the list.")
    if most is not None and found.st_size > most:
        raise PureError(
            f"{source.name} is larger than {most / 2**30:.0f} GB, which no capture is. Choose another file."
        )
    with open(source, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
    if size > MOST_HEADER:
        raise ValueError("header")


def read_head(text: str, name: str, wanted: str, versions: tuple[int, ...]) -> dict[str, Any]:
    """The JSON head of a file; raises PureError on another format or a newer version."""
    head: dict[str, Any] = json.loads(text)
    found, version = head["format"], head["version"]
    if found != wanted and isinstance(found, str) and found in LOADERS:
        raise PureError(f"{short(name)} is for {LOADERS[found]}. Load it there, or choose another file.")
    if found != wanted or isinstance(version, bool) or version not in versions:
        raise PureError(
            f"{short(name)} has the format {short(repr(found))}, version {short(repr(version))}. This pack reads "
            f"{wanted} up to version {max(versions)}: update the pack, or save it again."
        )
    return head


def typed(kind: Any, value: Any) -> Any:
    """The value as this type, from JSON; raises ValueError unless it is just that.

    Types: int, float, str, Literal, tuple[X, ...] and frozen dataclasses of them. Numbers are finite, text and lists
    bounded; fields of a dataclass that have a default may be missing, and others than its own are not allowed.
    """
    if is_dataclass(kind):
        if not isinstance(value, Mapping) or set(value) - {f.name for f in fields(kind)}:
            raise ValueError("fields")
        hints = get_type_hints(kind)
        return kind(**{name: typed(hints[name], part) for name, part in value.items()})  # type: ignore[operator]
    origin = get_origin(kind)
    if origin is Literal:
        if not any(value == offered and type(value) is type(offered) for offered in get_args(kind)):
            raise ValueError("choice")
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) > MOST_ITEMS:
            raise ValueError("list")
        return tuple(typed(get_args(kind)[0], part) for part in value)
    if kind is str:
        if not isinstance(value, str) or len(value) > MOST_TEXT:
            raise ValueError("text")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or not math.isfinite(value):
        raise ValueError("number")
    return value


def short(text: str, most: int = 60) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
