"""Files that nobody should trust: mutations of a saved basis, and files made to take memory or time. Needs no host."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

INSERTED = (b"9" * 12, b"[[[[" * 5000, b"\x00", b'"', b"-1", b"1e999", b'"__reduce__":')


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, repeated or put in, mostly in the header, where the structure is."""
    out, kind = bytearray(data), rng.randrange(4)
    at = rng.randrange(min(len(out), 4000) if rng.random() < 0.8 else len(out))
    if kind == 0:
        for _ in range(rng.randrange(1, 8)):
            out[min(at + rng.randrange(40), len(out) - 1)] = rng.randrange(256)
    elif kind == 1:
        del out[at : at + rng.randrange(1, 4000)]
    elif kind == 2:
        out[at:at] = out[at : at + rng.randrange(1, 200)]
    else:
        out[at:at] = rng.choice(INSERTED)
    return bytes(out)


def rewrite(path: Path, change: Callable[[dict, dict], object]) -> None:
    """Changes the tensors and the head of one of the pack's files, which stays a whole safetensors file."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["pure"])
    change(tensors, head)
    save_file(tensors, path, metadata={"pure": json.dumps(head)})


def write_raw(path: Path, pure: str) -> None:
    """A safetensors file without tensors that has this text as the pack's own head."""
    header = json.dumps({"__metadata__": {"pure": pure}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def bombs(folder: Path) -> Iterator[Path]:
    """Files that once took gigabytes or minutes, or ended in a raw Python error."""
    head = {
        "format": "pure-basis",
        "version": 2,
        "rule": "energy",
        "structure": "whole layer",
        "model": {"family": "a", "weights": "b"},
        "sites": {},
    }
    many = {f"l{i}": {"width": 1, "heads": 1, "context": 1} for i in range(100_000)}
    texts = {
        "94 MB of lists": json.dumps({**head, "extra": 0}).replace("0}", "[" + "[]," * 31_000_000 + "[]]}"),
        "a list of a million": json.dumps({**head, "recipe": {"settings": {"x": [{}] * 1_000_000}}}),
        "a list of many": json.dumps({**head, "recipe": {"settings": {"x": [{}] * 300_000}}}),
        "nested 989 deep": json.dumps({**head, "recipe": 0}).replace("0}", "[" * 989 + "]" * 989 + "}"),
        "nested deeper": json.dumps({**head, "recipe": 0}).replace("0}", "[" * 100_000 + "]" * 100_000 + "}"),
        "100,000 layers": json.dumps({**head, "sites": many}),
        "30,000 layers": json.dumps({**head, "sites": dict(list(many.items())[:30_000])}),
        "a long text": json.dumps({**head, "model": {"family": "x" * 1_000_000, "weights": ""}}),
    }
    for name, text in texts.items():
        path = folder / f"{name.replace(' ', '_')}.safetensors"
        write_raw(path, text)
        yield path
