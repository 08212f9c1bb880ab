"""Files that are whole or not there, under a name that nobody else's file had."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from .errors import PureError

NUMBER = re.compile(r"^(?P<stem>.*_)(?P<number>\d+)(?P<end>_?\.[^.]*)$")
WORKSHOP = re.compile(r"^\.pure-(?P<machine>[0-9a-f]+)-(?P<pid>\d+)-[0-9a-f]+\.part$")


@dataclass
class NewFile:
    """A file on its way: `part` is where to write it; `path` is where it is once the block has ended well."""

    part: Path
    path: Path


def machine() -> str:
    """This machine's name as part of a file's name."""
    return platform.node().encode("utf-8", "replace").hex()[:24]


@contextlib.contextmanager
def new_file(wanted: Path) -> Iterator[NewFile]:
    """Writes a new file: it gets the wanted name, or that of the next free number, when the block ends well.

    Whatever else is written beside `part` (libraries write temporary files there) lies in a folder of its own, which is
    removed however the block ends; it is not listed by any loader. The content is flushed to the disk before the file
    gets its name. Raises PureError where it cannot be written: a full disk, a read-only folder, too long a name.
    """
    wanted = Path(wanted)
    workshop = wanted.parent / f".pure-{machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
    try:
        workshop.mkdir(parents=True)
        file = NewFile(workshop / "whole.part", wanted)
        yield file
        with open(file.part, "rb+") as written:
            os.fsync(written.fileno())
        readable = workshop / "as any new file"  # safetensors writes files that their owner alone may read
        readable.touch()
        with contextlib.suppress(OSError):  # a disk without modes
            file.part.chmod(readable.stat().st_mode)
        file.path = publish(file.part, wanted)
    except PureError:
        raise
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: a name that no disk takes
        raise PureError(
            f"{wanted.name!r} could not be written ({error}). Make room or choose another filename_prefix, and run "
            "again; nothing is left of it."
        ) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def publish(part: Path, wanted: Path) -> Path:
    """Gives a written file its name, or that of the next free number; never replaces a file."""
    while True:
        try:
            claim(part, wanted)
            return wanted
        except FileExistsError:
            wanted = next_name(wanted)


def claim(part: Path, wanted: Path) -> None:
    """Moves part to a name that does not exist; raises FileExistsError where it does. Atomic."""
    try:
        os.link(part, wanted)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links (exFAT, some network drives): hold the name, then replace what holds it
        with open(wanted, "xb"):
            pass
        os.replace(part, wanted)


def next_name(path: Path) -> Path:
    """The same name with its number raised by one."""
    found = NUMBER.match(path.name)
    if not found:
        return path.with_name(f"{path.stem}_00002_{path.suffix}")
    digits = found["number"]
    return path.with_name(f"{found['stem']}{int(digits) + 1:0{len(digits)}}{found['end']}")


def abandoned(folder: Path, lives: Callable[[int], bool]) -> list[Path]:
    """Folders that a process of this machine left when it was killed; lives: whether a process of this id is there."""
    found = []
    for path in folder.glob(".pure-*.part"):
        name = WORKSHOP.match(path.name)
        if name and name["machine"] == machine() and not lives(int(name["pid"])):
            found.append(path)
    return found
