"""Time, memory and counted work of a piece of code, side by side with another one."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from math import isnan
from pathlib import Path
from statistics import median

import torch
from scipy.stats import quantile_test
from torch.utils.flop_counter import FlopCounterMode

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def settle() -> None:
    """Waits for what a GPU was given to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(function: Callable, *args) -> tuple:
    """What function(*args) returns, and the seconds it took."""
    settle()
    started = time.perf_counter()
    result = function(*args)
    settle()
    return result, time.perf_counter() - started


def interleaved(
    a: Callable[[], object], b: Callable[[], object], pairs: int, prepare: Callable[[int], object] = lambda which: None
) -> tuple[list[float], list[float]]:
    """Seconds of both, turn by turn and the first one changing, after one unmeasured turn: what slows the machine slows
    both.

    prepare(0) before each a, prepare(1) before each b: what is not to be counted.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs + 1):
        for which in (0, 1) if i % 2 else (1, 0):
            prepare(which)
            times[which].append(timed((a, b)[which])[1])
    return times[0][1:], times[1][1:]


def best(functions: list[Callable[[], object]], turns: int = 4) -> list[float]:
    """The shortest time of each, turn by turn: what slows the machine for a while slows all of them."""
    return list(map(min, zip(*([timed(function)[1] for function in functions] for _ in range(turns)), strict=True)))


def ratio(times: tuple[list[float], list[float]]) -> tuple[float, float, float]:
    """Median of b / a, pair by pair, with its 95 % interval by order statistics; of five pairs or fewer, too few for
    one, the lowest and the highest."""
    ratios = sorted(y / x for x, y in zip(*times, strict=True))
    low, high = quantile_test(ratios, q=median(ratios)).confidence_interval(0.95)
    return median(ratios), ratios[0] if isnan(low) else float(low), ratios[-1] if isnan(high) else float(high)


def resident(field: str = "VmRSS", status: Path = STATUS) -> float:
    """MB of memory that a process holds now (VmRSS) or held at most since the last reset (VmHWM); Linux."""
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak(function: Callable, *args) -> tuple:
    """What function(*args) returns, and how many MB above what it held before the process held at most meanwhile."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # what was freed before goes back to the system, or the function takes it from there unseen (glibc)
    CLEAR.write_text("5")  # resets VmHWM
    before = resident()
    result = function(*args)
    return result, resident("VmHWM") - before


def give_back_at_once() -> None:
    """From now on every tensor of 200 kB or more is memory of its own, which goes back to the system when it is freed.

    Without it glibc keeps freed pieces for later, in what order chance has it, and `peak` counts them too. Slower.
    """
    m_mmap_threshold = -3  # malloc.h
    if not ctypes.CDLL(None).mallopt(m_mmap_threshold, 200_000):
        raise OSError("mallopt refused M_MMAP_THRESHOLD: this needs glibc.")


def surplus_bound(layers, encoding: int, prompts: float, rows: float) -> float:
    """MB that a capture may hold beyond the sampler: encodings (bytes of one).

    Rows that wait, and again while they are handed on; of each layer its rows in float32 and in the end their moments
    in float64; of one layer, while it is compacted, twice its rows in float64.
    """
    from pure_pack.nodes.host.recording import BLOCK, ENCODED

    waiting = 2 * BLOCK * sum(4 * layer.width for layer in layers)
    collected = sum(
        (4 * min(rows, 2 * (layer.width + 1)) + 8 * min(rows, layer.width + 1)) * (layer.width + 1) for layer in layers
    )
    d = max(layer.width for layer in layers)
    compacted = 16 * min(rows, 2 * (d + 1) + BLOCK) * (d + 1)
    return (min(prompts + 1, ENCODED + 1) * encoding + waiting + collected + compacted) / 2**20


def flops(function: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products and convolutions in it (a multiply-add is two), as torch counts
    them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def product_rate(dtype: torch.dtype, size: int = 1536, repeats: int = 5) -> float:
    """Operations a second that a matrix product of this machine reaches: the best of some."""
    a, b = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    return max(2 * size**3 / timed(torch.matmul, a, b)[1] for _ in range(repeats))


def copy_rate(size: int = 2**28, repeats: int = 5) -> float:
    """Bytes a second that are read (and as many written) when memory is copied: the best of some."""
    a, b = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    return max(size / timed(b.copy_, a)[1] for _ in range(repeats))
