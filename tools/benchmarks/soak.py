"""One server for a long time: does it grow, does it get slower?"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median

from scipy.stats import linregress

from . import meters

QUEUES, WARM = 200, 20
BLOCK = 10  # queues of which the mean is one point of the line: one after the other they are not independent


def soak(_: str) -> dict:
    """QUEUES different captures, bases and edits through one server: its memory and its speed from first to last.

    After each, the host alone draws a picture: what slows the machine slows that too. The history of runs, in which the
    host keeps every graph and report, is emptied after each, as its web UI's button does.
    """
    import workflows
    from comfyui_server import Server
    from get_comfyui import Host
    from mini_sd.layout import install_checkpoint

    install_checkpoint(Host.load().base)
    with Server() as server:
        graph = workflows.to_api(workflows.substitute(workflows.load("step_by_step")), server.get("/object_info"))
        for i in workflows.find(graph, "SaveImage"):
            graph[i] = {
                "class_type": "PreviewImage",
                "inputs": {"images": graph[i]["inputs"]["images"]},
            }  # nothing is to stay on the disk

        def find(kind):
            return [graph[i]["inputs"] for i in workflows.find(graph, kind)]

        for inputs in find("PURE_ConceptPrompts"):
            inputs["templates"] = "a picture of {}"
            inputs["forget"] = "\n".join(inputs["forget"].splitlines()[:1])
        (lists,) = find("PURE_ConceptPrompts")
        host = workflows.upstream(graph, workflows.find(graph, "PreviewImage")[0])  # by the original MODEL
        status, memory, times, hosts = Path(f"/proc/{server.process.pid}/status"), [], [], []
        for seed in range(QUEUES):
            lists["keep"] = workflows.NEIGHBOURS[seed % 7]
            for inputs in find("PURE_CaptureActivations"):
                inputs.update({"steps": 4, "recorded_steps": 2, "seed": seed})
            for inputs in find("KSampler"):
                inputs.update({"steps": 1, "seed": seed})
            times.append(seconds(server, graph))
            for inputs in find("KSampler"):
                inputs.update({"steps": 3, "seed": QUEUES + seed})
            hosts.append(seconds(server, host))
            server.post("/history", {"clear": True})
            memory.append(meters.resident(status=status))
    ratios = [a / b for a, b in zip(times, hosts, strict=True)]
    return {
        "rows": [
            row("memory, MB", memory, "{:.0f}", 1024, "KB"),
            row("seconds of a queue", times, "{:.2f}", 1000, "ms"),
            row("seconds of the host's own picture", hosts, "{:.2f}", 1000, "ms"),
            row("the one / the other", ratios, "{:.2f}", 1000, "thousandths"),
        ],
        "memory": memory,
        "seconds": times,
        "host's seconds": hosts,
    }


def seconds(server, graph: dict) -> float:
    """How long the server worked on a graph, by its own clock."""
    entry = server.wait(server.queue(graph))
    at = {kind: data["timestamp"] for kind, data in entry["status"]["messages"] if "timestamp" in data}
    return (at["execution_success"] - at["execution_start"]) / 1000


def row(what: str, values: list[float], form: str, scale: float, unit: str) -> list[str]:
    """A table's row: medians of the first and the last tenth after warming up, the highest, and the slope of block
    means."""
    starts, tenth = range(WARM, QUEUES, BLOCK), QUEUES // 10
    line = linregress(list(starts), [mean(values[i : i + BLOCK]) for i in starts])
    shown = [median(values[WARM : WARM + tenth]), median(values[-tenth:]), max(values[WARM:])]
    return [what, *map(form.format, shown), f"{scale * line.slope:.2f} +- {scale * line.stderr:.2f} {unit} a queue"]
