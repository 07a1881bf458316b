"""``make nodes``: what dispatcher and store cost a cell, and 64 simulated nodes; appended to benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.nodes.overhead import costs
from benchmarks.nodes.scenarios import HEADER, Scenario, fresh, run

RESULTS = Path(__file__).parent.parent / "RESULTS.md"
BOUND_MS = 5.0
SCENARIOS = (
    Scenario("of 5 s, 10 tellings a second", steps=500, large=100),
    Scenario("of no time", steps=0, large=1200),
)


def overhead(cells: int, directory: Path) -> Iterator[str]:
    """The table of what the service costs a cell."""
    with_service, bare = costs(cells, directory)
    yield f"| {cells} trivial cells on a real Ray, ms a cell | dispatcher | bare Ray tasks | beyond Ray's | bound |"
    yield "|---|---|---|---|---|"
    names = ("wall", "wall time"), ("cpu", "CPU of the whole driver"), ("own_cpu", "CPU of its main thread")
    for name, what in names:
        yield _row(what, *(1e3 * getattr(cost, name) for cost in (with_service, bare)))


def _row(what: str, ours: float, bare: float) -> str:
    over = " **over** |" if ours - bare > BOUND_MS else " |"
    return f"| {what} | {ours:.2f} | {bare:.2f} | {ours - bare:.2f} | ≤ {BOUND_MS:g}{over}"


def simulated(directory: Path, nodes: int, seconds: float) -> Iterator[str]:
    """The table of the simulated nodes; medians and 95th percentiles."""
    yield "| " + " | ".join(HEADER) + " |"
    yield "|" + len(HEADER) * "---|"
    with _postgres() as new_database:
        for number, scenario in enumerate(SCENARIOS):
            for database in (None, new_database):
                for dispatchers in (1, 4):
                    folder = directory / f"{number}-{dispatchers}-{database is None}"
                    settings = fresh(folder, database() if database else None)
                    found = run(scenario, settings, dispatchers=dispatchers, nodes=nodes, seconds=seconds)
                    yield "| " + " | ".join(found) + " |"


@contextmanager
def _postgres():
    from tests.service.postgres import running

    with running() as server:
        yield server.new_database


def _lines(arguments: argparse.Namespace, directory: Path) -> Iterator[str]:
    load = os.getloadavg()[0]
    yield f"## {datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')}, nodes"
    yield ""
    yield (
        f"`make nodes` on {platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start;"
        f" Python {platform.python_version()}. {arguments.remark}".rstrip()
    )
    yield ""
    yield from overhead(arguments.cells, directory / "overhead")
    yield ""
    yield (
        f"{arguments.nodes} simulated nodes of 8 slots, divided among the dispatchers; {arguments.seconds:g} s each."
        " Pairs are median and 95th percentile."
    )
    yield ""
    yield from simulated(directory, arguments.nodes, arguments.seconds)


def main() -> None:
    """Print the lines as they come; append them to the results when all are there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description=__doc__)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--remark", default="", help="what else ran on the machine")
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        for line in _lines(arguments, Path(directory)):
            lines.append(line)
            print(line, flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n\n")
    print(f"\nappended to {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
