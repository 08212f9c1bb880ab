"""Erases concepts from checkpoints without a browser, on one ComfyUI or on several at once.

    python tools/erase.py CHECKPOINT.safetensors [...] --concepts CONCEPTS.txt [...] [--servers URL ...] [--out FOLDER]

Run it with ComfyUI's own Python. CHECKPOINT is a name of the checkpoint list of every server. Without --servers it
starts the ComfyUI that `tools/get_comfyui.py` set up, for as long as it needs it. A file of concepts has two lists:

    [forget]
    Pikachu
    a yellow mouse creature with pointed ears and red cheeks
    [keep]
    Charizard
    ...

Each line is captured on whichever server is free, by the pack's own nodes; the captures are merged, exactly, and the
first server builds the basis from them. Of each checkpoint and each file, OUT/<checkpoint>/<concepts>/ gets
basis.safetensors, lora.safetensors, before_after.png and report.json; the erased checkpoint stays in that server's
output folder (report.json says where) unless --no-checkpoint. Captures that are there are not run again, so the same
command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pack
from comfyui_server import Client, Server, ServerError
from get_comfyui import SetupError
from spread import Part, Spread

pack.load()

from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.kinds import KINDS, settings_of
from pure_pack.pure_core.ordinary import STEPS

ELSEWHERE = "the other list is in another part"  # PURE Concept Prompts wants something to forget
MERGED = 8  # captures that one PURE Merge Activations takes


@dataclass(frozen=True)
class Concepts:
    """What to forget and what to keep, a concept a line, and the name of the file that says so.

    ordinary: captions of ordinary pictures in place of the pack's own; empty for those.
    """

    name: str
    forget: tuple[str, ...]
    keep: tuple[str, ...]
    ordinary: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Concepts:
        """Raises SystemExit with what is wrong with the file."""
        lists: dict[str, list[str]] = {"[forget]": [], "[keep]": [], "[ordinary]": []}
        into = None
        for line in map(str.strip, path.read_text(encoding="utf-8").splitlines()):
            if line in lists:
                into = lists[line]
            elif line and into is None:
                raise SystemExit(f"{path} has to begin with [forget] or [keep]; it begins with {line[:40]!r}.")
            elif line:
                into.append(line)
        return cls(path.stem, *map(tuple, lists.values()))


@dataclass(frozen=True)
class Settings:
    """Of an erasure: kind and amount as in PURE Erase Concept, the rest of its captures and pictures.

    transformer: the checkpoint is one of SD 3's kind, not a U-Net.
    """

    kind: str = "object or character"
    amount: float = 0.5
    size: int = 512
    steps: int = 10
    seed: int = 0
    batch_size: int = 4
    picture_steps: int = 20
    transformer: bool = False

    @property
    def sampled(self) -> dict:
        """What makes a capture's rows what they are."""
        scheduler = "simple" if self.transformer else "normal"
        side = {"width": self.size, "height": self.size}
        return {**side, "steps": self.steps, "seed": self.seed, "sampler_name": "euler", "scheduler": scheduler}


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def lists(forget: str, keep: str, settings: Settings, empty: bool) -> dict:
    return node(
        "PURE_ConceptPrompts",
        forget=forget,
        keep=keep,
        kind=settings.kind,
        keep_empty_prompt=empty,
        templates="",
    )


def check(client: Client, concepts: Concepts, settings: Settings) -> None:
    """Raises ServerError, in the node's own words, where the lists cannot be used; nothing is sampled."""
    both = lists("\n".join(concepts.forget), "\n".join(concepts.keep), settings, True)
    client.run({"lists": both, "shown": node("PreviewAny", source=["lists", 2])})


def capture_parts(checkpoint: str, concepts: Concepts, settings: Settings, folder: Path) -> list[Part]:
    """A capture of each line, and of the empty prompt with the first line to keep."""
    sides = [("forget", line, 0) for line in concepts.forget] + [("keep", line, 1) for line in concepts.keep or ("",)]
    parts = []
    for i, (side, line, output) in enumerate(sides):
        empty = side == "keep" and i == len(concepts.forget)
        prompts = lists(line if side == "forget" else ELSEWHERE, line if side == "keep" else "", settings, empty)
        said = json.dumps([checkpoint, side, line, empty, settings.kind, settings.sampled])
        name = f"{side}_{hashlib.sha256(said.encode()).hexdigest()[:16]}"
        graph = {
            "loader": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
            "lists": prompts,
            "capture": node(
                "PURE_CaptureActivations",
                model=["loader", 0],
                clip=["loader", 1],
                prompts=["lists", output],
                recorded_steps=settings.steps,
                seeds=1,
                cfg=1.0,
                batch_size=settings.batch_size,
                experimental=False,
                **settings.sampled,
            ),
            # a folder of its own for each run: the number that the host gives is always the first
            "save": node(
                "PURE_SaveActivations",
                activations=["capture", 0],
                filename_prefix=f"pure/parts/{name}_{time.time_ns()}/part",
                embed_recipe=True,
            ),
        }
        server_folder = graph["save"]["inputs"]["filename_prefix"].rpartition("/")[0]
        target = folder / f"{name}.safetensors"
        parts.append(
            Part(f"{side}: {line or 'nothing in particular'}", graph, "part_00001_.safetensors", server_folder, target)
        )
    return parts


def merged(graph: dict, files: list[str], side: str) -> list:
    """Adds what loads and merges these files to a graph; returns the link to what comes out."""
    links = []
    for i, file in enumerate(files):
        graph[f"{side} {i}"] = node("PURE_LoadActivations", name=file)
        links.append([f"{side} {i}", 0])
    level = 0
    while len(links) > 1:
        level, groups = level + 1, [links[i : i + MERGED] for i in range(0, len(links), MERGED)]
        links = []
        for i, group in enumerate(groups):
            if len(group) == 1:
                links += group
                continue
            inputs = {f"activations_{letter}": link for letter, link in zip("abcdefgh", group, strict=False)}
            graph[f"{side} merge {level} {i}"] = node("PURE_MergeActivations", **inputs)
            links.append([f"{side} merge {level} {i}", 0])
    return links[0]


def build_graph(
    checkpoint: str, concepts: Concepts, settings: Settings, files: dict[str, list[str]], prefix: str, keep_model: bool
) -> dict:
    """From captures in the server's pure folder to basis, LoRA, checkpoint and pictures."""
    graph = {"loader": node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
    sides = {side: merged(graph, files[side], side) for side in ("forget", "keep")}
    build, weights = settings_of(
        settings.kind, settings.amount, "transformer" if settings.transformer else "U-Net", not settings.transformer
    )
    saving = {"embed_recipe": True}
    shown = "\n".join((*concepts.forget[:2], *concepts.keep[:4]))
    graph |= {
        "ordinary": node(
            "PURE_CaptureOrdinary",
            model=["loader", 0],
            clip=["loader", 1],
            language=KINDS[settings.kind].language,
            captions="\n".join(concepts.ordinary),
            steps=STEPS,
            size=settings.size,
            batch_size=settings.batch_size,
            keep_file=True,
        ),
        "basis": node("PURE_BuildBasis", **sides, ordinary=["ordinary", 0], **asdict(build)),
        "edit": node(
            "PURE_ApplyProjection",
            model=["loader", 0],
            basis=["basis", 0],
            strength=1.0,
            weights=weights,
            iterations=1,
            layers="all",
        ),
        "save basis": node("PURE_SaveBasis", basis=["basis", 0], filename_prefix=f"{prefix}/basis", **saving),
        "save lora": node("PURE_SaveLoRA", model=["edit", 0], filename_prefix=f"{prefix}/lora", dtype="fp16", **saving),
        "pictures": node(
            "PURE_CompareImages",
            original=["loader", 0],
            edited=["edit", 0],
            clip=["loader", 1],
            vae=["loader", 2],
            prompts=shown,
            negative="",
            cfg=5.0,
            **{**settings.sampled, "steps": settings.picture_steps},
            columns=len(shown.splitlines()),
            seeds=2,
        ),
        "sheet": node("SaveImage", images=["pictures", 0], filename_prefix=f"{prefix}/sheet"),
    }
    if keep_model:
        parts = {"model": ["edit", 0], "clip": ["loader", 1], "vae": ["loader", 2]}
        name = f"checkpoints/{Path(checkpoint).stem}_without_{concepts.name}"
        graph["save checkpoint"] = node("PURE_SaveCheckpoint", **parts, filename_prefix=name, **saving)
    return graph


def erase(
    spread: Spread, checkpoint: str, concepts: Concepts, settings: Settings, folder: Path, keep_model: bool
) -> dict:
    """One checkpoint without one file's concepts; returns what report.json says."""
    started, tell = time.monotonic(), spread.tell
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    parts = capture_parts(checkpoint, concepts, settings, folder / "parts")
    spread.run(parts)
    prefix = f"pure/erased/{time.time_ns()}"
    files: dict[str, list[str]] = {"forget": [], "keep": []}
    for part in parts:
        files[part.label.partition(":")[0]].append(f"{prefix.removeprefix('pure/')}/parts/{part.target.name}")

    def build(client: Client) -> tuple[str, dict]:
        """The address of the server that did it, and what its nodes said; the files are in the folder then."""
        for part in parts:
            client.upload(part.target, f"{prefix}/parts")
        client.get("/object_info/PURE_LoadActivations")  # the host looks into the folder again
        tell(f"Building the basis of {len(parts)} captures on {client.url}")
        outputs = client.run(build_graph(checkpoint, concepts, settings, files, prefix, keep_model), seconds=24 * 3600)
        fetched = {"basis.safetensors": "basis_00001_.safetensors", "lora.safetensors": "lora_00001_.safetensors"}
        fetched["before_after.png"] = outputs["sheet"]["images"][0]["filename"]
        for name, theirs in fetched.items():
            client.download(theirs, prefix, folder / name)
        return client.url, outputs

    builder, outputs = spread.ask(build)
    report = {
        "checkpoint": checkpoint,
        "concepts": asdict(concepts),
        "settings": asdict(settings),
        "captures": {part.label: part.done or {"server": "an earlier run"} for part in parts},
        "built on": builder,
        "basis": outputs["basis"]["text"][0],
        "edit": outputs["edit"]["text"][0],
        "saved": outputs["save checkpoint"]["text"][0] if keep_model else "no checkpoint",
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tell(f"{report['basis'].splitlines()[0]}\n{folder} is complete after {report['seconds']:.0f} s.")
    return report


@contextlib.contextmanager
def servers_of(urls: list[str]) -> Iterator[list[str]]:
    """The addresses that were given, or that of a server which runs as long as the block."""
    if urls:
        yield urls
        return
    with Server() as server:
        yield [server.url]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--concepts", type=Path, nargs="+", required=True)
    parser.add_argument("--servers", nargs="+", default=[], metavar="URL")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="until a server answers (default 0)")
    parser.add_argument("--out", type=Path, default=Path("erased"))
    parser.add_argument("--no-checkpoint", action="store_true", help="basis, LoRA and pictures alone")
    for name, default in asdict(Settings()).items():
        form = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
        parser.add_argument(f"--{name.replace('_', '-')}", **form)
    options = parser.parse_args(argv)
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    jobs = [Concepts.read(path) for path in options.concepts]
    try:
        settings_of(settings.kind, settings.amount)  # says what is wrong with them
        with servers_of(options.servers) as urls:
            spread = Spread(urls, lambda line: print(line, flush=True))
            for concepts in jobs:  # before anything is sampled
                spread.ask(lambda client, concepts=concepts: check(client, concepts, settings), options.wait)
            for checkpoint in options.checkpoints:
                for concepts in jobs:
                    folder = options.out / Path(checkpoint).stem / concepts.name
                    erase(spread, checkpoint, concepts, settings, folder, not options.no_checkpoint)
    except (ServerError, SetupError, PureError, OSError) as error:
        print(f"erase: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
