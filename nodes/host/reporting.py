"""Progress, interruption, and text that is shown on the node while it runs and after."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
from comfy_api.latest import ui

log = logging.getLogger("pure-concept-unlearning")
WARNING = "Warning: "  # how a line of a report begins that warns
SHOWN = "pure_report"  # the key of a node's output that web/js/report.js looks for
LAST = "pure_last"  # beside it: the one report of PURE Erase Concept's inner nodes that is for its user
SHOWN_LINES = 6  # of a report on the node itself; the STRING output has all of it


class Progress:
    """The host's progress bar, over samples x steps with latent previews (of a MODEL) or other work (None).

    Answers a cancel at each step.
    """

    def __init__(self, model: Any, total: int):
        self.total, self.done = total, 0
        self._bar = comfy.utils.ProgressBar(total)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format) if model else None

    def step(self, denoised: Any = None, count: int = 1) -> None:
        """So many more are done; raises the host's InterruptProcessingException if the user has cancelled."""
        self.done += count
        preview = self._previewer.decode_latent_to_preview_image("JPEG", denoised) if self._previewer else None
        self._bar.update_absolute(self.done, self.total, preview)
        check_cancelled()


def check_cancelled() -> None:
    """Raises the host's InterruptProcessingException if the user has cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def show(text: str, node_id: str | None) -> None:
    """Puts a short text on a node while it runs (a host without that ability shows nothing).

    What runs inside another node, as in PURE Erase Concept, shows there.
    """
    from comfy_execution.progress import get_progress_state
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, get_progress_state().dynprompt.get_display_node_id(node_id))


def report(text: str, warnings: Sequence[str] = (), image: Any = None, cls: Any = None) -> dict[str, Any]:
    """Logs a report's warnings and returns the node's `ui`.

    All of it for the history, its first lines for web/js/report.js to show on the node.
    """
    for warning in warnings:
        log.warning(warning)
    shown: dict[str, Any] = {**ui.PreviewText(text).as_dict(), SHOWN: ("\n".join(text.splitlines()[:SHOWN_LINES]),)}
    return shown if image is None else {**shown, **ui.PreviewImage(image, cls=cls).as_dict()}
