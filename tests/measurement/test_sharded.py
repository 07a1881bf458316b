"""A model that ``fully_shard`` spreads over two processes, against the whole one on the union of their batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.measurement.sharded_processes", str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT, text=True, stderr=subprocess.PIPE) for rank in (0, 1)]
    try:
        told = [rank.communicate(timeout=100)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], told
    finally:
        for rank in ranks:  # one that waits for the other
            rank.kill()
