"""One of two processes that train together: ``python -m tests.measurement.monitored_processes CASE FOLDER RANK``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from featurespeed_workers import FeatureSpeedMonitor
from tests.measurement.identity import same
from tests.measurement.monitored import make_model, make_optimizer, train


def the_same_with_and_without(folder: Path, rank: int) -> None:
    def run(monitored: bool) -> object:
        model = make_model()
        optimizer = make_optimizer("adamw", model)
        parallel = DistributedDataParallel(model)
        if not monitored or rank != 0:
            return train(parallel, optimizer, 6)
        with FeatureSpeedMonitor(model, optimizer, to=folder / "run.jsonl", every=2) as monitor:
            return train(parallel, optimizer, 6, lambda step, x, y: monitor.step(x, y))

    assert same(run(True), run(False))
    if rank == 0:
        records = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
        assert [(record["step"], record["error"]) for record in records] == [(0, None), (2, None), (4, None)]


def refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSpeedMonitor(model, make_optimizer("sgd", model), to=print)


def main(case: str, folder: Path, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        if case == "same":
            the_same_with_and_without(folder, rank)
        elif case == "synchronized":
            refused(nn.SyncBatchNorm.convert_sync_batchnorm(make_model()), "0.1 is a SyncBatchNorm")
        else:
            refused(fully_shard(make_model()), "'0.0.weight' is sharded over processes")
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
