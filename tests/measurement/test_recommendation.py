"""The recommendation: its targets are met, seen from outside; and a run under it is what torch alone would do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from featurespeed.contract import Report, parse_request
from featurespeed.defaults import RELATIVE_SENSITIVITY
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.cells import run_cell
from featurespeed_workers.data import load
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.local import answer
from featurespeed_workers.optimizers import SignSgd

RESNET = {"family": "resnet", "input_dim": 64, "width": 48, "depth": 8, "output_dim": 10}
MLP = {"family": "mlp", "input_dim": 64, "width": 48, "depth": 5, "output_dim": 10}
VIT = {
    "family": "transformer", "layers": 2, "width": 16, "heads": 2, "output_dim": 10,
    "image": {"height": 8, "width": 8, "patch": 4},
}  # fmt: skip


KINDS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "signsgd": SignSgd, "muon": torch.optim.Muon}


def request(architecture: dict[str, Any], **fields: Any) -> dict[str, Any]:
    data = {"kind": "digits", "batch_size": 64}
    basis = {"kind": "recommend", "architecture": architecture, "data": data, "loss": "cross_entropy"}
    return {**basis, "measurement": {"seeds": [0], "dtype": "float64"}, **fields}


def ask(architecture: dict[str, Any], **fields: Any) -> Report:
    return answer(parse_request(request(architecture, **fields)))


STEPS = {
    "resnet, sgd": (RESNET, "sgd", "block"),
    "mlp, sgd": (MLP, "sgd", "block"),
    "vit, sgd": (VIT, "sgd", "block"),
    "resnet, adamw": (RESNET, "adamw", "block"),
    "mlp, adamw": (MLP, "adamw", "block"),
    "vit, adamw": (VIT, "adamw", "block"),
    "mlp, signsgd": (MLP, "signsgd", "block"),
    "vit, signsgd": (VIT, "signsgd", "block"),
    "resnet, muon": (RESNET, "muon", "block"),
    "vit, muon": (VIT, "muon", "block"),
    "vit, adamw, by tensor": (VIT, "adamw", "tensor"),
    "mlp, sgd, by tensor": ({**MLP, "bias": True}, "sgd", "tensor"),
    "vit, muon, by tensor": (VIT, "muon", "tensor"),
    "vit, adamw, by group": (VIT, "adamw", "group"),
    "resnet, sgd, by group": (RESNET, "sgd", "group"),
}


@pytest.mark.parametrize("case", STEPS)
def test_one_step_at_a_small_rate_does_what_the_recommendation_says(case: str) -> None:
    """The oracle is torch alone: apply, take one tiny step of the real optimizer, look at the loss and at f_{L-1}.

    With rates η_l (δt taken out) times h the loss falls by h · 1 and f_{L-1} moves by h · τ, relatively.
    """
    architecture, optimizer, granularity = STEPS[case]
    asked = parse_request(request(architecture, optimizer={"name": optimizer}, scaling={"granularity": granularity}))
    report = answer(asked)
    advice = report.recommendation
    assert advice.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.02)
    assert advice.master_lr == pytest.approx(advice.feature_step / RELATIVE_SENSITIVITY, rel=1e-12)
    model = build(asked.architecture, seed=0).module.double()
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    h, found = 1e-6, []
    for step in range(4):  # the batches that the recommendation averaged
        _redraw(asked, model, {p.name: p.init_std for p in advice.parameters})
        optimizers = [
            KINDS[name](_slowed(report.param_groups(model, optimizer=name), h / advice.master_lr), weight_decay=0.0)
            for name in (("muon", "adamw") if optimizer == "muon" else (optimizer,))
        ]
        found.append(_one_step(model, optimizers, *source.batch(0, step)))
    assert sum(decay for decay, _ in found) / h / 4 == pytest.approx(1.0, rel=0.05)
    relative = [change / decay for decay, change in found]
    assert sum(relative) / 4 == pytest.approx(advice.relative_sensitivity, rel=0.03)


def _slowed(groups: list[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    return [{"params": group["params"], "lr": group["lr"] * factor} for group in groups]


def _one_step(model, optimizers, inputs, targets) -> tuple[float, float]:
    """Decrease of the loss and relative change of f_{L-1} in one step."""
    features: list[torch.Tensor] = []
    handle = list(model.children())[-2].register_forward_hook(lambda m, a, out: features.append(out.detach()))
    loss = F.cross_entropy(model(inputs), targets)
    model.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        after = F.cross_entropy(model(inputs), targets)
    handle.remove()
    before, moved = features
    return float(loss.detach() - after), float((moved - before).norm() / before.norm())


def _redraw(asked, model, stds: dict[str, float]) -> None:
    """The starting weights of seed 0, rescaled to the recommended stds by hand."""
    network = build(asked.architecture, seed=0)
    base_initialize(network, seed=0)
    starts = network.module.named_parameters()
    with torch.no_grad():
        for (name, p), (_, start) in zip(model.named_parameters(), starts, strict=True):
            rms = float(start.double().pow(2).mean().sqrt())
            p.copy_(start.double() * (stds[name] / rms) if stds[name] else start.double())


def test_scales_are_told_as_ratios_to_the_default_initialization() -> None:
    """PyTorch draws a linear layer of n inputs uniformly in ±1/√n: its std is 1/√(3n)."""
    report = ask({**MLP, "bias": True}, measurement={"seeds": [0, 1]})
    for block in report.recommendation.blocks:
        inputs = next(p.shape[1] for p in report.recommendation.parameters if p.name == f"{block.name}.weight")
        assert block.init_ratio == pytest.approx(block.init_std * (3 * inputs) ** 0.5, rel=0.1)  # of what was drawn
        assert block.module == block.name
    by_name = {p.name: p for p in report.recommendation.parameters}
    assert by_name["output.weight"].init_ratio == pytest.approx(report.recommendation.blocks[-1].init_ratio, rel=1e-12)
    assert by_name["output.bias"].init_ratio == 0


def test_with_momentum_the_rates_are_for_the_step_that_training_takes() -> None:
    plain = ask(RESNET, optimizer={"name": "sgd"}).recommendation
    for nesterov in (False, True):
        momentum = ask(RESNET, optimizer={"name": "sgd", "momentum": 0.9, "nesterov": nesterov}).recommendation
        for a, b in zip(plain.blocks, momentum.blocks, strict=True):
            assert b.lr == pytest.approx(0.1 * a.lr, rel=1e-9)
            assert b.init_std == pytest.approx(a.init_std, rel=1e-9)


def test_frozen_blocks_are_scaled_as_others_and_get_no_rate() -> None:
    """A layer that is drawn and never trained, as in the paper's experiments, needs a scale like any other."""
    report, free = ask(MLP, frozen=["input", "output"]), ask(MLP)
    scales = [block.init_std for block in report.recommendation.blocks]
    assert scales[:-1] == pytest.approx([block.init_std for block in free.recommendation.blocks[:-1]], rel=1e-12)
    assert scales[0] != pytest.approx(1 / 8, rel=0.01)  # digits' inputs are smaller than the start 1/√64 supposes
    assert all(layer.feature_rms.mean == pytest.approx(1.0, rel=0.05) for layer in report.measurements[0].layers[:-1])
    assert report.recommendation.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.02)
    assert scales[-1] != pytest.approx(free.recommendation.blocks[-1].init_std, rel=0.05)  # fewer blocks move f_{L-1}
    rates = [block.lr for block in report.recommendation.blocks]
    assert rates[0] == rates[-1] == 0
    assert all(rate > 0 for rate in rates[1:-1])
    contributions = [layer.contribution.mean for layer in report.measurements[0].layers]
    assert contributions[0] == contributions[-1] == 0
    assert report.measurements[0].layers[0].angle.mean is None  # f_1 does not move
    assert sum(contributions) == pytest.approx(1.0, rel=0.1)


def test_only_the_output_trains() -> None:
    with pytest.raises(MeasurementError, match="last hidden feature does not move"):
        ask(MLP, frozen=["input", "hidden"])


def test_a_branch_scale_of_zero_names_the_first_dead_block() -> None:
    with pytest.raises(MeasurementError, match="gradient of block 'hidden_2' is zero"):
        ask({**RESNET, "branch_scale": 0.0})


@pytest.mark.parametrize("seed", range(4))
def test_the_output_scale_is_the_small_one_where_the_loss_is_at_its_floor(seed: int) -> None:
    """With one target, some large output scale has f = y by chance: τ has a pole there, and a second root beyond."""
    spec = {
        "kind": "recommend", "loss": "mse", "optimizer": {"name": "sgd"}, "scaling": {"relative_sensitivity": 10.0},
        "architecture": {"family": "mlp", "input_dim": 10, "width": 128, "depth": 12, "output_dim": 1},
        "data": {"kind": "sphere", "batch_size": 1, "targets": "ones"}, "measurement": {"seeds": [seed]},
    }  # fmt: skip
    report = answer(parse_request(spec))
    assert report.warnings == ()
    assert report.recommendation.blocks[-1].init_std < 0.02
    assert report.measurements[0].loss > 0.1


@pytest.mark.parametrize(
    "optimizer", [{"name": "sgd", "momentum": 0.9}, {"name": "adamw", "weight_decay": 0.1}], ids=["sgd", "adamw"]
)
def test_a_run_is_what_torch_alone_would_do(optimizer) -> None:
    """Losses at the checkpoints against a training loop written here, with torch's optimizer on the plain module."""
    fields = {"seeds": [5], "steps": 7, "every": 3, "dtype": "float64", "master_lr": 0.25}
    spec = request(RESNET, kind="measure", optimizer=optimizer, measurement=fields, learning_rates=0.01)
    asked = parse_request(spec)
    report = answer(asked)
    assert [m.step for m in report.measurements] == [0, 3, 6, 7]

    model = build(asked.architecture, seed=5).module.double()
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer["name"]]
    real = kind(model.parameters(), lr=0.01 * 0.25, **{k: v for k, v in optimizer.items() if k != "name"})
    losses = []
    for step in range(8):
        inputs, targets = source.batch(5, step)
        real.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        loss.backward()
        real.step()
    assert [m.loss for m in report.measurements] == pytest.approx(
        [losses[m.step] for m in report.measurements], rel=1e-9
    )


def test_a_run_by_muon_is_what_torch_alone_would_do() -> None:
    """Both optimizers, one rate a block, against a loop with torch.optim.Muon and AdamW on the plain module."""
    fields = {"seeds": [5], "steps": 4, "every": 2, "dtype": "float64", "master_lr": 0.5}
    optimizer = {"name": "muon", "momentum": 0.9, "adamw": {"betas": [0.9, 0.95], "weight_decay": 0.1}}
    rates = {"input": 0.01, "hidden": 0.04, "output": 0.02}
    asked = parse_request(request(VIT, kind="measure", optimizer=optimizer, measurement=fields, learning_rates=rates))
    report = answer(asked)

    model = build(asked.architecture, seed=5).module.double()
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    named = dict(model.named_parameters())
    inside = [p for n, p in named.items() if n.startswith("hidden") and p.ndim == 2]
    rest = [
        {"params": [p for n, p in named.items() if n.startswith(group) and all(p is not q for q in inside)],
         "lr": rate * 0.5}
        for group, rate in rates.items()
    ]  # fmt: skip
    muon = torch.optim.Muon(inside, lr=0.04 * 0.5, momentum=0.9, weight_decay=0.0)
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for step in range(5):
        inputs, targets = source.batch(5, step)
        model.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        loss.backward()
        muon.step()
        adamw.step()
    assert [m.loss for m in report.measurements] == pytest.approx([losses[i] for i in (0, 2, 4)], rel=1e-9)


def test_a_run_that_diverges_is_a_warning_and_keeps_what_was_measured() -> None:
    fields = {"seeds": [0], "steps": 50, "every": 10}
    report = ask(MLP, kind="measure", optimizer={"name": "sgd"}, learning_rates=1e6, measurement=fields)
    assert report.measurements[0].step == 0
    assert len(report.measurements) < 6
    assert any("training stopped after step" in warning for warning in report.warnings)


def test_training_under_the_recommendation_learns_digits() -> None:
    fields = {"seeds": [0, 1], "steps": 60, "every": 30}
    report = ask(RESNET, optimizer={"name": "adamw"}, measurement=fields)
    first, *_, last = report.measurements
    assert last.loss < 0.2 < 2 < first.loss


def test_explicit_initialization_is_drawn_by_group_and_by_name() -> None:
    asked = parse_request(
        request(
            MLP, kind="measure", initialization={"hidden": 0.2, "hidden_3": 0.05, "output": 0.0}, learning_rates=1.0
        )
    )
    cell = run_cell(asked, 0)
    rms = [layer.feature_rms for layer in cell.checkpoints[0].measurement.layers]
    # ‖W φ(f)‖_rms = σ · sqrt(m / 2) · ‖f‖_rms for ReLU features that are about symmetric
    assert rms[1] / rms[0] == pytest.approx(0.2 * math.sqrt(24), rel=0.25)
    assert rms[2] / rms[1] == pytest.approx(0.05 * math.sqrt(24), rel=0.25)
    assert rms[4] == 0
    assert "gradient of block 'input' is zero" in answer(asked).warnings[0]
