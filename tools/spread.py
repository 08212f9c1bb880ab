"""Spreads graphs over running ComfyUI servers: each server takes the next one, and what a dead one had is repeated."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from comfyui_server import UNREACHABLE, Client, ServerError, error_of

TRIES = 3  # how often in a row a server may fail to answer before it counts as dead
PAUSE = 2.0  # seconds between two of them
POLL = 0.3  # seconds between two questions whether a graph has ended


@dataclass
class Part:
    """One graph, and the file of it that is wanted: `name` in `folder` of the server's output, to be `target` here."""

    label: str
    graph: dict
    name: str
    folder: str
    target: Path
    done: dict = field(default_factory=dict)  # who did it, in how many seconds, and who had lost it before


class Spread:
    """Runs parts on several servers at once.

    servers: addresses. tell: takes a line for the user.
    """

    def __init__(self, servers: list[str], tell: Callable[[str], None]):
        self.clients, self.tell = [Client(url) for url in servers], tell
        self._waiting: queue.Queue[Part] = queue.Queue()
        self._open, self._lock = 0, threading.Lock()
        self._fault: Exception | None = None

    def first(self, seconds: float = 0) -> Client:
        """The first server that answers, within so many seconds; raises ServerError where none does."""
        end = time.monotonic() + seconds
        while True:
            for client in self.clients:
                if client.answers():
                    return client
            if time.monotonic() >= end:
                raise ServerError(
                    f"No ComfyUI answers at {', '.join(client.url for client in self.clients)}. Start one, or give its "
                    "address with --servers; what is done already is kept."
                )
            time.sleep(PAUSE)

    def ask(self, question: Callable[[Client], Any], seconds: float = 0) -> Any:
        """What the first server that answers, within so many seconds, says to a question; where it stops answering,
        what the next one does."""
        for _ in range(TRIES * len(self.clients)):
            client = self.first(seconds)
            try:
                return question(client)
            except HTTPError as error:  # it does answer, and would say so again
                raise ServerError(f"{client.url} answered {error.code} {error.reason}.") from error
            except UNREACHABLE as error:
                self.tell(f"{client.url} does not answer ({error}); another one is asked.")
        return question(self.first(seconds))

    def run(self, parts: list[Part]) -> None:
        """Until every part's file is here; those that are here already are not run again.

        Raises ServerError with a node's own sentence, or where no server is left: the files that are here stay, and the
        same call goes on from there.
        """
        missing = [part for part in parts if not part.target.exists()]
        if len(missing) < len(parts):
            self.tell(f"{len(parts) - len(missing)} of {len(parts)} parts are there already.")
        self._open = len(missing)
        for part in missing:
            self._waiting.put(part)
        threads = [threading.Thread(target=self._serve, args=(client,), daemon=True) for client in self.clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._fault:
            raise self._fault
        if self._open:
            raise ServerError(
                f"No server is left, and {self._open} of {len(parts)} parts are missing. Start one and run the same "
                "command again; what is done already is kept."
            )

    def _serve(self, client: Client) -> None:
        """Takes parts until all are done, the server is dead, or a part failed for good."""
        while self._open and not self._fault:
            try:
                part = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue  # another server may die yet
            started = time.monotonic()
            try:
                self._fetch(client, part)
            except UNREACHABLE as error:
                part.done.setdefault("lost by", []).append(client.url)
                self._waiting.put(part)
                self.tell(f"{client.url} does not answer ({error}); {part.label} is repeated elsewhere.")
                return
            except ServerError as error:  # a node said no: it would say so again
                self._fault = ServerError(f"{part.label}: {error}")
                return
            except Exception as error:  # nobody else would do this part: the others must not wait for it
                self._fault = error
                return
            part.done |= {"server": client.url, "seconds": round(time.monotonic() - started, 1)}
            with self._lock:
                self._open -= 1
            self.tell(f"{part.label}: {part.done['seconds']:.0f} s on {client.url}")

    def _fetch(self, client: Client, part: Part) -> None:
        prompt_id = patient(lambda: client.queue(part.graph))
        fault = error_of(ended(client, prompt_id))
        if fault:
            raise ServerError(fault)
        patient(lambda: client.download(part.name, part.folder, part.target))


def ended(client: Client, prompt_id: str) -> dict:
    """The history entry of a queued graph once it has ended; ConnectionError where the server has forgotten it."""
    while True:
        entry = patient(lambda: client.get(f"/history/{prompt_id}")).get(prompt_id, {})
        if entry.get("status", {}).get("status_str"):
            return entry
        known = patient(lambda: client.get("/queue"))
        if not any(prompt_id in item for item in (*known["queue_running"], *known["queue_pending"])):
            if patient(lambda: client.get(f"/history/{prompt_id}")):
                continue  # it ended between the two questions
            raise ConnectionError("it was started again")
        time.sleep(POLL)


def patient(call: Callable[[], Any]) -> Any:
    """What a call returns, after up to TRIES times where the server does not answer."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(*UNREACHABLE):
            return call()
        time.sleep(PAUSE)
    return call()
