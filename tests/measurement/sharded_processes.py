"""One of two processes that hold a model together: ``python -m tests.measurement.sharded_processes FOLDER RANK``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from featurespeed_workers import MeasurementError, measure, recommend
from featurespeed_workers.losses import mse
from tests.measurement.identity import same

BLOCKS = ["0", "1", "2", "3"]


class Failing(nn.Module):
    """Fails in the pass that is asked for."""

    passes = 0
    fails_at = -1

    def forward(self, x: Tensor) -> Tensor:
        Failing.passes += 1
        if Failing.passes == Failing.fails_at:
            raise RuntimeError("out of luck")
        return x


def make_model() -> nn.Sequential:
    """Seven rows, three and one do not divide by two."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 9),
        nn.Sequential(nn.GELU(), nn.LayerNorm(9), nn.Linear(9, 7)),
        nn.Sequential(nn.Tanh(), Failing(), nn.Linear(7, 3)),
        nn.Sequential(nn.GELU(), nn.Linear(3, 1)),
    ).double()


def shard(model: nn.Sequential, **options: object) -> nn.Module:
    for block in model:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def batch(rank: int | None = None, parts: tuple[int, int] = (5, 5)) -> tuple[Tensor, Tensor]:
    """The union, or one process's part of it."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(10, 6, generator=generator).double(), torch.randn(10, 1, generator=generator).double()
    return (x, y) if rank is None else (x.split(parts)[rank], y.split(parts)[rank])


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
    return torch.optim.AdamW(parameters, lr=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], watch=None) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data[0]), data[1]).backward()
        if watch is not None:
            watch()
        optimizer.step()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> object:
    def part(x: object) -> object:
        return (x.to_local() if isinstance(x, DTensor) else x).clone() if isinstance(x, Tensor) else x

    kept = [{key: part(value) for key, value in optimizer.state[p].items()} for p in model.parameters()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    return [(part(p), part(p.grad)) for p in model.parameters()], kept, hooks, torch.get_rng_state()


def as_unsharded(rank: int, optimizer_name: str, method: str, tolerance: float) -> None:
    """All numbers, at a state of the optimizer with moments, are those of the whole model on the union."""
    asked = {"loss": "mse", "blocks": BLOCKS, "method": method, "learning_rates": "optimizer"}
    model, whole = shard(make_model()), make_model()
    optimizers = [make_optimizer(optimizer_name, m) for m in (model, whole)]
    train(model, optimizers[0], batch(rank))
    train(whole, optimizers[1], batch())
    before = state(model, optimizers[0])
    report = measure(model, [batch(rank)], optimizer=optimizers[0], **asked)
    assert same(state(model, optimizers[0]), before)
    truth = measure(whole, [batch()], optimizer=optimizers[1], **{**asked, "method": "exact"})
    [found], [exact] = report.measurements, truth.measurements
    assert found.method == ("central_difference" if method == "exact" else method)
    assert (found.loss, found.loss_decay) == pytest.approx((exact.loss, exact.loss_decay), rel=1e-9)
    assert found.formula_residual < found.cos_error + 1e-15 < tolerance
    for a, b in zip(found.layers, exact.layers, strict=True):
        assert a.size == b.size
        for name in ("feature_rms", "backward_rms", "contribution", "gradient_norm"):
            assert getattr(a, name).mean == pytest.approx(getattr(b, name).mean, rel=1e-9)
        for name in ("angle", "cos", "feature_speed", "sensitivity"):
            assert getattr(a, name).mean == pytest.approx(getattr(b, name).mean, rel=tolerance)


def training_is_the_same(rank: int) -> None:
    def run(watched: bool) -> object:
        model = shard(make_model())
        optimizer = make_optimizer("adamw", model)
        asked = {"loss": "mse", "optimizer": optimizer, "learning_rates": "optimizer", "blocks": BLOCKS}
        train(model, optimizer, batch(rank), (lambda: measure(model, [batch(rank)], **asked)) if watched else None)
        return state(model, optimizer)

    assert same(run(True), run(False))


def restored_when_a_pass_fails(rank: int) -> None:
    model = shard(make_model())
    optimizer = make_optimizer("sgd", model)
    train(model, optimizer, batch(rank))
    before, data = state(model, optimizer), batch(rank)
    expected = model(data[0]).detach()
    for nth in range(1, 6):  # gradient, and both sides of two steps
        Failing.passes, Failing.fails_at = 0, nth
        with pytest.raises(RuntimeError, match="out of luck"):
            measure(model, [data], loss="mse", blocks=BLOCKS)
        Failing.fails_at = -1
        assert same(state(model, optimizer), before)
        assert torch.equal(model(data[0]), expected)


def frozen_and_uneven(rank: int) -> None:
    """Parts of 4 and 6 examples: the loss is the mean of the two means, as in training."""
    model, whole = make_model(), make_model()
    for m in (model, whole):
        m[0].requires_grad_(False)
    parts = (4, 6)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        each = [mse(f, y) for f, y in zip(outputs.split(parts), targets.split(parts), strict=True)]
        return sum(each) / 2

    report = measure(shard(model), [batch(rank, parts)], loss="mse", blocks=BLOCKS)
    truth = measure(whole, [batch()], loss=loss, blocks=BLOCKS)
    for a, b in zip(report.measurements[0].layers, truth.measurements[0].layers, strict=True):
        assert (a.size, a.feature_speed.mean) == (b.size, pytest.approx(b.feature_speed.mean, rel=1e-8))
        assert a.angle.mean == (None if b.name == "0" else pytest.approx(b.angle.mean, rel=1e-8))


def low_precision(rank: int) -> None:
    model = shard(make_model().float(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    data = tuple(x.float() for x in batch(rank))
    report = measure(model, [data], loss=lambda f, y: mse(f.float(), y), blocks=BLOCKS)
    truth = measure(make_model(), [batch()], loss="mse", blocks=BLOCKS)
    for a, b in zip(report.measurements[0].layers, truth.measurements[0].layers, strict=True):
        assert a.cos.mean == pytest.approx(b.cos.mean, abs=0.1)


def refused(rank: int) -> None:
    model, data = shard(make_model()), batch(rank)
    with pytest.raises(ValueError, match="recommend needs them whole, before fully_shard"):
        recommend(model, [data], loss="mse", blocks=BLOCKS)
    with pytest.raises(MeasurementError, match="sharded over processes, and cannot be differentiated twice"):
        measure(model, [data], loss="mse", blocks=BLOCKS, method="double_backward")
    with pytest.raises(ValueError, match="muon's step is not one of shards"):
        measure(model, [data], loss="mse", blocks=BLOCKS, optimizer="muon")
    with pytest.raises(ValueError, match="name the cut nodes by hand"):
        measure(model, [data], loss="mse")
    nothing = (torch.full_like(data[0], torch.inf) if rank else data[0], data[1])
    with pytest.raises(MeasurementError, match=r"not finite|the loss is nan"):  # in both, though one has the fault
        measure(model, [nothing], loss="mse", blocks=BLOCKS)
    report = measure(model, [data], loss="mse", blocks=BLOCKS, stability=True)
    assert any("stability is not measured: parameters are sharded" in w for w in report.warnings)
    part = nn.Sequential(fully_shard(nn.Linear(6, 9)), nn.Linear(9, 1)).double()
    with pytest.raises(ValueError, match=r"'1.weight' is not sharded over the one dimension"):
        measure(part, [data], loss="mse", blocks=["0", "1"])


def main(folder: Path, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        as_unsharded(rank, "sgd", "exact", 1e-8)
        as_unsharded(rank, "adamw", "central_difference", 1e-8)
        as_unsharded(rank, "adamw", "finite_difference", 1e-5)
        training_is_the_same(rank)
        restored_when_a_pass_fails(rank)
        frozen_and_uneven(rank)
        low_precision(rank)
        refused(rank)
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
