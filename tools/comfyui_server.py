"""Starts the real ComfyUI server on a free loopback port and talks to its HTTP API, as a user's browser does."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from get_comfyui import Host

START_SECONDS = 600  # on a busy machine; it is stopped at once where the process ends


# What a call raises where a server does not answer, or not to the end.
UNREACHABLE = (OSError, http.client.HTTPException, json.JSONDecodeError)


class ServerError(RuntimeError):
    """What the server answered, as a user would read it."""


class Client:
    """Talks to a running ComfyUI at an address, wherever it is."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def check_alive(self) -> None:
        """Raises ServerError where the server is known to have stopped; a server elsewhere tells by not answering."""

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            self.get("/system_stats")
        except UNREACHABLE:
            return False
        return True

    def get(self, path: str):
        """A GET request's JSON answer."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict):
        """A POST request's JSON answer, also of a refusal (HTTP 400)."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refusal:
            text = refusal.read()
        return json.loads(text) if text else {}

    def queue(self, graph: dict, client_id: str = "") -> str:
        """Queues an API-format graph; returns its id.

        Raises ServerError with the validation errors if it is refused.
        """
        answer = self.post("/prompt", {"prompt": graph, "client_id": client_id or uuid.uuid4().hex})
        if "prompt_id" not in answer or answer.get("node_errors"):
            raise ServerError(json.dumps(answer))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 900) -> dict:
        """The history entry of a queued graph once it has ended, well or not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if history.get(prompt_id, {}).get("status", {}).get("status_str"):
                return history[prompt_id]
            self.check_alive()
            time.sleep(0.2)
        raise ServerError(f"The graph did not end within {seconds:.0f} seconds.")

    def run(self, graph: dict, seconds: float = 900, progress: Callable[[str, int, int], None] | None = None) -> dict:
        """Queues a graph and returns the outputs of its nodes, by node id; progress is called with (node id, value, of
        how many).

        Raises ServerError with the node's own message.
        """
        client_id = uuid.uuid4().hex
        with self.watching(client_id, progress) if progress else contextlib.nullcontext():
            entry = self.wait(self.queue(graph, client_id), seconds)
        if entry["status"]["status_str"] != "success":
            raise ServerError(error_of(entry))
        return entry["outputs"]

    @contextlib.contextmanager
    def watching(self, client_id: str, progress: Callable[[str, int, int], None]):
        """Listens to the server's websocket in a thread for the length of the block, as the browser does."""
        import aiohttp

        ready, loop = threading.Event(), asyncio.new_event_loop()

        async def listen():
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={client_id}") as socket,
            ):
                ready.set()
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        data = json.loads(message.data)
                        if data["type"] == "progress":
                            progress(str(data["data"]["node"]), data["data"]["value"], data["data"]["max"])

        task = loop.create_task(listen())
        thread = threading.Thread(
            target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)), daemon=True
        )
        thread.start()
        ready.wait(10)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join(10)
            loop.close()

    def download(self, name: str, folder: str, target: Path) -> Path:
        """A file of the server's output folder, whole or not at all."""
        query = urllib.parse.urlencode({"filename": name, "subfolder": folder, "type": "output"})
        part = target.with_name(f"{target.name}.part")
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=600) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
        part.replace(target)
        return target

    def upload(self, source: Path, folder: str) -> None:
        """Puts a file into a folder of the server's output folder, over one of the same name."""
        import aiohttp

        async def send() -> None:
            with source.open("rb") as file:
                form = aiohttp.FormData({"type": "output", "subfolder": folder, "overwrite": "true"})
                form.add_field("image", file, filename=source.name)  # the host takes any file there
                try:
                    async with (
                        aiohttp.ClientSession() as session,
                        session.post(f"{self.url}/upload/image", data=form) as got,
                    ):
                        if got.status != 200:
                            raise ServerError(f"{self.url} did not take {source.name} ({got.status} {got.reason}).")
                except aiohttp.ClientError as error:  # not all of them are of UNREACHABLE
                    raise ConnectionError(str(error)) from error

        with ThreadPoolExecutor(1) as thread:  # whoever calls may have an event loop of its own
            thread.submit(lambda: asyncio.run(send())).result()


class Server(Client):
    """A running server, as a context manager: `with Server() as server: server.run(graph)`."""

    def __init__(self, base: Path | None = None, arguments: tuple[str, ...] = ()):
        super().__init__("")  # known once it has a port
        self.host, self.arguments = Host.load(), arguments
        self.base = Path(base or self.host.base)
        handle, log = tempfile.mkstemp(prefix="comfyui-", suffix=".log")
        os.close(handle)
        self.log = Path(log)

    def __enter__(self) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            self.host.python,
            str(Path(self.host.source) / "main.py"),
            "--cpu",
            "--listen",
            "127.0.0.1",
            "--port",
            str(port),
            "--disable-auto-launch",
            "--base-directory",
            str(self.base),
            "--disable-api-nodes",
            *self.arguments,
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.host.source, stdout=log, stderr=subprocess.STDOUT, env=self.host.environment()
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                words = self.log_text()[-3000:]
                self.log.unlink()
                raise ServerError(f"ComfyUI stopped while starting; its last words:\n{words}")
            if self.answers():
                return self
            time.sleep(0.3)
        words = self.log_text()[-3000:]
        self.__exit__()
        raise ServerError(f"ComfyUI did not answer within {START_SECONDS} seconds; its last words:\n{words}")

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.unlink(missing_ok=True)

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise ServerError(f"ComfyUI stopped; its last words:\n{self.log_text()[-3000:]}")

    def file(self, image: dict) -> Path:
        """The path of a picture that a node's output names."""
        return self.base / image["type"] / image["subfolder"] / image["filename"]


def error_of(entry: dict) -> str:
    """The message that the user read, of a history entry that ended in an error; "" of one that did not."""
    for kind, data in entry["status"].get("messages", []):
        if kind == "execution_error":
            return data["exception_message"].strip()
        if kind == "execution_interrupted":
            return "interrupted"
    return ""


def main() -> None:
    """Starts a server for a person to look at, until it is stopped."""
    from mini_sd.layout import install_checkpoint, install_wan

    install_checkpoint(Host.load().base)
    install_wan(Host.load().base)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as Ctrl+C: the ComfyUI stops with this process
    with Server() as server:
        print(f"ComfyUI is at {server.url} (Ctrl+C stops it). Its Python: {server.host.python}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.process.wait()


if __name__ == "__main__":
    main()
