"""Captures that are kept as files under models/pure, by what they are of, so that they are sampled only once."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...pure_core.activations import Activations, ModelIdentity, identity_differences
from ...pure_core.activations_file import load_activations, save_activations
from ...pure_core.errors import PureError
from ...pure_core.ordinary import TOGETHER
from ...pure_core.prompts import Prompts
from . import recording, reporting
from .identity import Digest, identify
from .paths import SUFFIX, check_room, kept_folder
from .sampling import Trajectory

MOST = 12  # files that are kept: 3 GB of SDXL's
log = logging.getLogger("pure-concept-unlearning")


def captured(
    model: Any, clip: Any, prompts: Prompts, trajectory: Trajectory, keep: bool, node_id: str | None
) -> tuple[Activations, str]:
    """The capture of these prompts, from its file where there is one, and a report.

    keep: whether to look for a file, and to write one. A file that cannot be written is a warning: the capture is
    there.
    Raises PureError on a file that is damaged, or not of what its name says.
    """
    count = sum(concept == TOGETHER and text != "" for concept, text in prompts.pairs)
    found = recording.recordable_sites(model)
    identity = identify(model, clip, found)
    path = path_of(identity, prompts, trajectory)
    if keep and path.is_file():
        with contextlib.suppress(OSError):  # a folder of models that several share may be read-only
            os.utime(path)  # it is in use: others go first
        return read(path, identity, prompts, trajectory), f"Used {path.name}: {count} ordinary pictures of this MODEL."
    what = f"{count} ordinary pictures x {trajectory.recorded_steps} steps"
    reporting.show(f"Capturing {what}, once for this MODEL", node_id)
    capture = recording.capture(model, clip, prompts, trajectory)
    told = f"Captured {what}: {capture.count} recordings in each of {len(capture.moments)} attention layers."
    if not keep or path.is_file():  # another ComfyUI was faster
        return capture, told
    try:
        check_room(path, capture.nbytes)
        written = save_activations(capture, path)
    except PureError as error:
        log.warning("%s", error)
        return capture, f"{reporting.WARNING}The result could not be kept for next time. {error}\n{told}"
    size = written.stat().st_size / 2**20
    forget_old(path.parent)
    return capture, f"{told}\nKept for next time in {written} ({size:.0f} MB)."


def forget_old(folder: Path) -> None:
    """Deletes the files that were used longest ago, so that MOST are left: each LoRA at each strength makes another."""
    with contextlib.suppress(OSError):  # another ComfyUI does the same
        files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in files[: max(len(files) - MOST, 0)]:
            path.unlink(missing_ok=True)


def path_of(identity: ModelIdentity, prompts: Prompts, trajectory: Trajectory) -> Path:
    """Where the capture of these prompts on this MODEL is kept: a name that nothing else has."""
    digest = Digest()
    digest.add({name: value for name, value in asdict(identity).items() if name != "sketch"})
    digest.add([prompts.role, prompts.pairs, asdict(trajectory.settings)])
    name = f"{''.join(c if c.isalnum() else '_' for c in identity.family)}_{digest}{SUFFIX}"
    return kept_folder() / name


def read(path: Path, identity: ModelIdentity, prompts: Prompts, trajectory: Trajectory) -> Activations:
    """A kept capture; raises PureError where it is damaged or of something else."""
    try:
        capture = load_activations(path, reporting.check_cancelled)
    except PureError as error:
        raise PureError(f"{path} cannot be used: delete it, and run again. ({error})") from error
    same = (capture.role, capture.anchors.prompts, capture.settings) == (
        prompts.role,
        prompts.texts,
        trajectory.settings,
    )
    if not same or identity_differences(capture.model, identity):
        raise PureError(f"{path} is not of this MODEL and these captions: delete it, and run again.")
    return capture
