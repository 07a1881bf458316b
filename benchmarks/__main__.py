"""``make bench``: every speed and memory figure from one run, as a table; appended to benchmarks/RESULTS.md."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import memory, speed, startup

RESULTS = Path(__file__).parent / "RESULTS.md"


def rows() -> Iterator[tuple[str, str, str]]:
    """(what, measured, bound) of every figure."""
    torch.set_num_threads(1)
    for optimizer in ("sgd", "adamw"):
        for name, step, exact, difference in speed.speed_ratios(optimizer):
            where = f"{name}, {optimizer}"
            yield f"exact ÷ plain step ({step:.0f} ms): {where}", f"{exact:.2f}", "≤ 2.2"
            yield f"finite difference ÷ plain step: {where}", f"{difference:.2f}", "≤ 1.5"
        for name, megabytes, ratio in memory.memory_ratios(optimizer):
            yield f"peak memory ÷ plain step ({megabytes:.0f} MB): {name}, {optimizer}", f"{ratio:.2f}", "≤ 2.2"
    for name, step, ratio in speed.monitor_ratios():
        yield f"monitored step − its training step ({step:.0f} ms), ÷ that: {name}, adamw", f"{ratio:.2f}", "≤ 2"
    costs = speed.cost_per_layer()
    shown = ", ".join(f"{depth}: {cost:.2f}" for depth, cost in costs.items())
    yield f"ms per layer by depth, ResNet width 128 ({shown}): largest ÷ smallest", _spread(costs), "≤ 1.25"
    yield "import of featurespeed.Client", f"{startup.import_seconds():.2f} s", "≤ 0.4 s"
    yield "in-process measure of a tiny MLP, whole process", f"{startup.process_seconds():.2f} s", "≤ 3 s"
    total, inside = startup.service_seconds()
    overhead = f"{1e3 * (total - inside):.0f} ms"
    yield (
        f"service overhead, submit to result ({1e3 * total:.0f} ms) − compute ({1e3 * inside:.1f} ms)",
        overhead,
        "≤ 300 ms",
    )


def _over(measured: str, bound: str) -> bool:
    return float(measured.split()[0]) > float(bound.split()[1])


def _spread(costs: dict[int, float]) -> str:
    return f"{max(costs.values()) / min(costs.values()):.2f}"


def main() -> None:
    """Print the rows as they come; append them to the results when all are there."""
    load = os.getloadavg()[0]
    began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        f"## {began}",
        "",
        f"`make bench` on {machine}; {versions}.",
        "",
        "| what | measured | bound |",
        "|---|---|---|",
    ]
    print("\n".join(lines))
    for row in rows():
        lines.append("| " + " | ".join(row) + (" **over** |" if _over(*row[1:]) else " |"))
        print(lines[-1], flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n\n")
    print(f"\nappended to {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
