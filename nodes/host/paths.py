"""Where files come from and go to: the host's folders."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import folder_paths
import psutil
from comfy.cli_args import args

from ...pure_core.errors import PureError
from ...pure_core.whole_file import abandoned, next_name

log = logging.getLogger("pure-concept-unlearning")
FOLDER = "pure"  # the model folder of saved bases and captures
KEPT = "ordinary"  # in models/pure: captures that the pack keeps for itself, by the MODEL that they are of
SUFFIX = ".safetensors"
ROOM = 16 * 2**20  # bytes that have to stay free beside the file itself
SERVED = re.compile(r"[A-Za-z0-9._-]+")  # names of folders that the host serves files of
CONCEPT = "%concept%"  # in a prefix: what is erased
LONGEST_CONCEPT = 40  # letters of it
LONGEST = 200  # bytes of a file's name: disks take 255, and the host adds a number


def register_folder() -> None:
    """Makes models/pure and output/pure the host's folder type `pure`, for .safetensors files alone."""
    for parent in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(FOLDER, os.path.join(parent, FOLDER))
    folder_paths.folder_names_and_paths[FOLDER] = (folder_paths.folder_names_and_paths[FOLDER][0], {SUFFIX})


def warn_of_folder_name() -> None:
    """Says at start if the pack's folder has a name under which the host cannot serve its help pages and script.

    The host's routes take letters, digits, dots, underscores and hyphens; with a space or a bracket they answer 404.
    """
    name = Path(__file__).resolve().parents[2].name
    if not SERVED.fullmatch(name):
        log.warning(
            "The folder custom_nodes/%s has a name under which ComfyUI does not serve help pages and reports on nodes. "
            "Rename it to pure-concept-unlearning and restart; until then, connect report outputs to Preview as Text.",
            name,
        )


def kept_folder() -> Path:
    """The folder of captures that the pack keeps for itself."""
    return Path(folder_paths.models_dir) / FOLDER / KEPT


def saved_files() -> list[str]:
    """Names of the bases and captures in the folder type `pure`, without what the pack keeps for itself."""
    names: list[str]
    try:
        names = folder_paths.get_filename_list(FOLDER)
    except FileNotFoundError:  # the host remembers a folder that was deleted since
        del folder_paths.filename_list_cache[FOLDER]
        names = folder_paths.get_filename_list(FOLDER)
    kept = kept_folder()
    return [name for name in names if Path(name).parts[0] != KEPT or not (kept.parent / name).exists()]


def saved_path(name: str) -> Path:
    """The file of a listed name; raises PureError on any other, and where the name leads nowhere."""
    path = folder_paths.get_full_path(FOLDER, name) if name in saved_files() else None
    if path is None:
        raise PureError(
            f"There is no file {name!r} in models/{FOLDER} or output/{FOLDER}. Choose one from the list (refresh it "
            "after copying a file there)."
        )
    return Path(path)


def state_of(name: str) -> str:
    """What tells a listed file from itself after a change; what is wrong with it, which loading says in words."""
    try:
        stat = saved_path(name).stat()
    except (OSError, PureError) as error:
        return str(error)
    return f"{stat.st_mtime_ns} {stat.st_size}"


def named(prefix: str, concepts: Iterable[str], embed_recipe: bool) -> str:
    """The prefix with the first of the erased concepts in place of CONCEPT, or a neutral word where none is to be
    named."""
    first = next(iter(concepts), "") if embeds(embed_recipe) else ""
    word = "_".join(re.findall(r"\w+", first))[:LONGEST_CONCEPT].strip("_")
    return prefix.replace(CONCEPT, word or "edit")


def new_path(prefix: str) -> Path:
    """A file of the output folder that is not there yet: prefix_00001_.safetensors and so on, numbered by the host.

    Removes what a process that was killed while saving has left in the folder. Raises PureError on a prefix that is no
    name inside the output folder.
    """
    output = os.path.abspath(folder_paths.get_output_directory())
    # The host counts files by the name as it is written: with "name/" it would find none and start at 1 again.
    inside = os.path.normpath(prefix)
    folder = os.path.abspath(os.path.join(output, os.path.dirname(inside)))
    wrong = not os.path.basename(inside).strip(". ") or os.path.splitdrive(inside)[0] or "\0" in prefix
    if wrong or os.path.commonpath((output, folder)) != output:
        raise PureError(
            f"filename_prefix must be a name inside ComfyUI's output folder, such as pure/basis; it is {prefix!r}."
        )
    try:
        if any(len(os.fsencode(part)) > LONGEST for part in Path(inside).parts):
            raise PureError(f"filename_prefix has a name of over {LONGEST} bytes. Choose a shorter one.")
        folder, name, counter, _, _ = folder_paths.get_save_image_path(inside, output)
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        shown = prefix.encode("utf-8", "replace").decode()
        raise PureError(f"The folder of {shown!r} cannot be used ({error}). Choose another filename_prefix.") from error
    for left in abandoned(Path(folder), psutil.pid_exists):
        shutil.rmtree(left, ignore_errors=True)
    target = Path(folder) / f"{name}_{counter:05}_{SUFFIX}"
    while target.exists():  # a disk that does not tell upper from lower case
        target = next_name(target)
    return target


def embeds(embed_recipe: bool) -> bool:
    """Whether prompts and settings go into files: only if the user and the host's --disable-metadata both allow it."""
    return embed_recipe and not args.disable_metadata


def check_room(target: Path, size: int) -> None:
    """Raises PureError where the disk has no room for a file of this size."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise PureError(f"The folder of {target.name} cannot be used ({error}). Choose another one.") from error
    if free < size + ROOM:
        raise PureError(
            f"{target.name} needs {size / 2**20:.0f} MB and its disk has {free / 2**20:.0f} MB left. Make room or "
            "choose another folder; nothing was written."
        )
