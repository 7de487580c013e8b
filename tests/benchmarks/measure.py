"""Ratios of times measured in turns, and peaks of memory."""

import ctypes
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from utils.process.distributed import all_reduce_max, device, world_size

Seconds = dict[str, torch.Tensor]  # variant -> [rounds] float64
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3  # names of options of glibc's mallopt
SMALL_BLOCK = 2**16  # bytes


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of one ratio a round, and what it should stay within, if anything says so.

    Attributes:
        bar: at most this, or with `at_least` at least this.
    """

    median: float
    low: float
    high: float
    bar: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool | None:
        if self.bar is None:
            return None
        return self.median >= self.bar if self.at_least else self.median <= self.bar

    def __str__(self) -> str:
        text = f"{self.median:.2f}" + (f" ({self.low:.2f}-{self.high:.2f})" if self.low < self.high else "")
        if self.bar is None:
            return text
        return f"{text} {'≥' if self.at_least else '≤'} {self.bar:.2f} {'✓' if self.holds else '✗'}"


def ratio_of(
    numerators: torch.Tensor, denominators: torch.Tensor, bar: float | None = None, at_least: bool = False
) -> Ratio:
    """Each [rounds]: what was measured in the same round is compared."""
    low, median, high = (numerators / denominators).quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    return Ratio(median, low, high, bar, at_least)


def single(value: float, bar: float | None = None) -> Ratio:
    """Of what is measured once."""
    return Ratio(value, value, value, bar)


def time_in_turns(variants: dict[str, Callable[[], object]], rounds: int, warm_ups: int = 1) -> Seconds:
    """Seconds of every variant in every round, until the slowest rank is done.

    All variants run in every round, each time in another order, so that what else the machine does strikes all alike.
    """
    names, seconds = list(variants), {name: [] for name in variants}
    for name in names * warm_ups:
        variants[name]()
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(variants[name]))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in seconds.items()}


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of one call on the slowest rank."""
    if world_size() > 1:
        dist.barrier()
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return all_reduce_max(torch.tensor(time.perf_counter() - start, device=device())).item()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def give_memory_back() -> None:
    """Let glibc return freed blocks to the system at once: otherwise the peak also counts what it keeps for later."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MALLOC_MMAP_THRESHOLD, SMALL_BLOCK)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, SMALL_BLOCK)
        libc.malloc_trim(0)


def peak_bytes(function: Callable[[], object]) -> int:
    """This rank's peak memory while `function` runs: allocated on the GPU, or resident in the host's memory (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated()
    return resident_peak(function)


def resident_peak(function: Callable[[], object]) -> int:
    """This process's peak in the host's memory while `function` runs, in bytes; files that are mapped count (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    function()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
