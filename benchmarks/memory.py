"""Peak memory of a measurement ÷ that of a plain training step, each in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.speed import NETS, workload


def memory_ratios(optimizer: str) -> Iterator[tuple[str, float, float]]:
    """Per net: its name, megabytes at the peak of a plain step (parameters included), and the measurement's ÷ that."""
    for name in NETS:
        step, exact = (_in_process(name, optimizer, action) for action in ("step", "exact"))
        yield name, step, exact / step


def _in_process(name: str, optimizer: str, action: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", name, optimizer, action]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_bytes() -> int:
    """Most memory that this process has held since it was started.

    On Linux from /proc: what getrusage says there includes the process that it was forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _grow(name: str, optimizer: str, action: str) -> float:
    """Growth of the peak over a process that has run the same code on a net of almost no size."""
    small = {**NETS[name], "data": {**NETS[name]["data"], "batch_size": 1}}
    size = {"width": 8, "heads": 2} if "heads" in small["architecture"] else {"width": 8}
    tiny = workload({**small, "architecture": {**small["architecture"], **size}}, optimizer)
    tiny.step()
    tiny.measure("exact")
    before = peak_bytes()
    work = workload(NETS[name], optimizer)
    for _ in range(3):
        work.step() if action == "step" else work.measure("exact")
    return (peak_bytes() - before) / 1e6


if __name__ == "__main__":
    print(_grow(*sys.argv[1:]))
