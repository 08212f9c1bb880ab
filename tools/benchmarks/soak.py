"""One server for a long time: does it grow, does it get slower?"""
from __future__ import annotations

from pathlib import Path
from statistics import mean, median

from . import meters

QUEUES, WARM = 200, 20
BLOCK = 10  # queues of which the mean is one point of the line: one after the other they are not independent


def soak(_: str) -> dict:
    """QUEUES different captures, bases and edits through one server: its memory and its speed from first to last."""
    import workflows
    from comfyui_server import Server
    from get_comfyui import Host
    from mini_sd.layout import install_checkpoint

    install_checkpoint(Host.load().base)
    with Server() as server:
        graph = workflows.to_api(workflows.substitute(workflows.load("erase_a_character")), server.get("/object_info"))
        for i in workflows.find(graph, "SaveImage"):
            graph[i] = {"class_type": "PreviewImage", "inputs": {"images": graph[i]["inputs"]["images"]}}  # nothing is to stay on the disk
        find = lambda kind: [graph[i]["inputs"] for i in workflows.find(graph, kind)]
        for inputs in find("PURE_ConceptPrompts"):
            inputs["templates"] = "a picture of {}"
        retain = next(inputs for inputs in find("PURE_ConceptPrompts") if inputs["role"] == "retain")
        status, memory, times = Path(f"/proc/{server.process.pid}/status"), [], []
        for seed in range(QUEUES):
            retain["concepts"] = "\n".join(workflows.NEIGHBOURS[seed % 3 : 3 + seed % 3])
            for inputs in find("PURE_CaptureActivations"):
                inputs.update({"steps": 4, "recorded_steps": 2, "seed": seed})
            for inputs in find("KSampler"):
                inputs.update({"steps": 1, "seed": seed})
            times.append(meters.timed(server.run, graph)[1])
            memory.append(meters.resident(status=status))
    blocks = range(WARM, QUEUES, BLOCK)
    means = lambda values: [mean(values[i : i + BLOCK]) for i in blocks]
    _, grown, grown_error, _ = meters.line(list(blocks), means(memory))
    _, slower, slower_error, _ = meters.line(list(blocks), means(times))
    tenth = max(1, QUEUES // 10)
    return {"rows": [["memory MB", f"{memory[WARM]:.0f}", f"{memory[-1]:.0f}", f"{max(memory):.0f}", f"{1024 * grown:.1f} +- {1024 * grown_error:.1f} KB a queue"],
                     ["seconds", f"{median(times[WARM : WARM + tenth]):.2f}", f"{median(times[-tenth:]):.2f}", f"{max(times[WARM:]):.2f}", f"{1000 * slower:.2f} +- {1000 * slower_error:.2f} ms a queue"]],
            "memory": memory, "seconds": times}
