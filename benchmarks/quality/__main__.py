"""``python -m benchmarks.quality``: do our scales and rates train as well as the best of a sweep?"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from benchmarks.quality import drawing, report, results
from benchmarks.quality.contenders import CONTENDERS
from benchmarks.quality.suite import QUICK, Cell, cells

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- results: written by make quality -->", "<!-- end of results -->"
EXAMPLES = """\
examples:
  python -m benchmarks.quality                      all cells and contenders; hours; goes on where it was interrupted
  python -m benchmarks.quality --quick              two networks, minutes
  python -m benchmarks.quality --only digits-vit --redo "featurespeed refined"
"""


def main() -> int:
    """Run what has no result yet, then write tables and figure."""
    options = _options()
    chosen = [c for c in cells() if not options.only or any(c.name.startswith(o) for o in options.only)]
    if not chosen:
        print(f"--only: no cell begins with {' or '.join(options.only)}", file=sys.stderr)
        return 2
    redo = set(options.redo)
    if unknown := sorted(redo - set(CONTENDERS)):
        print(f"--redo: {unknown[0]!r} is not one of {', '.join(CONTENDERS)}", file=sys.stderr)
        return 2
    work = [(cell, name) for cell in chosen for name in CONTENDERS if name in redo or results.load(cell, name) is None]
    try:
        failed = _run(work, options.jobs)
    except KeyboardInterrupt:
        print("\ninterrupted; finished results are kept", file=sys.stderr)
        return 130
    text = report.whole(chosen)
    print(text)
    if chosen == list(cells()) and not failed:
        _publish(text, chosen)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="cells that begin so")
    parser.add_argument("--quick", dest="only", action="store_const", const=QUICK, help=f"only {' and '.join(QUICK)}")
    parser.add_argument("--redo", nargs="+", default=[], metavar="CONTENDER", help="compute these again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    return parser.parse_args()


def _run(work: Sequence[tuple[Cell, str]], jobs: int) -> int:
    """Compute and store; a failure is told and costs its own result alone. Returns their number."""
    began, failed = time.monotonic(), 0
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        futures: dict[Future[None], tuple[Cell, str]] = {pool.submit(_compute, *item): item for item in work}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                cell, name = futures[future]
                error = future.exception()
                failed += error is not None
                outcome = f"failed: {error!r}" if error else "done"
                left = (time.monotonic() - began) / done * (len(work) - done) / 60
                print(f"[{done}/{len(work)}, {left:.0f} min left] {cell.name}, {name}: {outcome}", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _one_thread() -> None:
    torch.set_num_threads(1)


def _compute(cell: Cell, name: str) -> None:
    began = time.process_time()
    result = CONTENDERS[name](cell)
    results.save(cell, name, {**result, "cpu_seconds": round(time.process_time() - began, 1)})


def _publish(text: str, chosen: Sequence[Cell]) -> None:
    """Put tables into docs/quality.md, and the figure beside it."""
    page = DOCS / "quality.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    drawing.draw(report.scores(chosen), chosen, DOCS / "quality" / "regret.png")
    print(page, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
