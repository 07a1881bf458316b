"""An output that starts at zero: after one real step at the rate given, τ is what was asked for."""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from featurespeed.contract import Measurement, Report, SpecError, parse_request
from featurespeed.defaults import RELATIVE_SENSITIVITY
from featurespeed_workers.architectures import build
from featurespeed_workers.data import load
from featurespeed_workers.local import answer
from featurespeed_workers.probes import FIRST_STEP
from tests.measurement.test_recommendation import MLP, RESNET, VIT, _redraw, request

KINDS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def asked_for(architecture: dict[str, Any], optimizer: str, **changes: Any) -> dict[str, Any]:
    scaling = {"zero_output": True, **changes.pop("scaling", {})}
    return request(architecture, optimizer={"name": optimizer}, scaling=scaling, **changes)


def tau(measured: Measurement) -> float:
    layer = measured.layers[-2]
    return layer.feature_speed.mean / layer.feature_rms.mean / measured.loss_decay


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("architecture", [RESNET, MLP, VIT], ids=["resnet", "mlp", "vit"])
def test_after_one_real_step_the_next_does_what_the_recommendation_says(architecture, optimizer) -> None:
    """Torch alone: one step at ``first_lr`` from a zero output, then a tiny one on the next batch at rates η_l.

    Means over four pairs of batches. By a fresh optimizer the loss then falls by 1, and τ is met to 25 %: rates are
    balanced on the batches' mean, not on each as in the search. The optimizer of the first step brings its state
    (Adam's hidden moments have seen a zero gradient): a factor 1.5.
    """
    asked = parse_request(asked_for(architecture, optimizer))
    report = answer(asked)
    advice = report.recommendation
    assert advice.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.03)
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    fresh, same = [], []
    for i in range(4):
        model = build(asked.architecture, seed=0).module.double()
        _redraw(asked, model, {p.name: p.init_std for p in advice.parameters})
        report.apply(model)
        assert all(not p.any() for p in list(model.children())[-1].parameters() if p.ndim > 1)
        groups = report.param_groups(model)
        assert [g["name"] for g in groups if "first_lr" in g] == ["output"]
        first = KINDS[optimizer]([{**g, "lr": g.get("first_lr", 0.0)} for g in groups], weight_decay=0.0)
        _step(model, first, *source.batch(0, i))
        following = source.batch(0, (i + 1) % 4)
        other = copy.deepcopy(model)
        slow = _slow(report, report.param_groups(other))
        fresh.append(_tiny(other, KINDS[optimizer](slow, weight_decay=0.0), *following))
        for group, tiny in zip(first.param_groups, slow, strict=True):
            group["lr"] = tiny["lr"]
        same.append(_tiny(model, first, *following))
    assert statistics.fmean(t for t, _ in fresh) == pytest.approx(advice.relative_sensitivity, rel=0.25)
    assert 1 / 1.5 < statistics.fmean(t for t, _ in same) / RELATIVE_SENSITIVITY < 1.5
    assert statistics.fmean(decay for _, decay in fresh) == pytest.approx(1.0, rel=0.02)


H = 1e-6


def _slow(report: Report, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"params": g["params"], "lr": g["lr"] / report.recommendation.master_lr * H} for g in groups]


def _step(model, optimizer, inputs, targets) -> torch.Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _tiny(model, optimizer, inputs, targets) -> tuple[float, float]:
    """τ, and the decrease of the loss for a step of size 1, from a step of size h."""
    features: list[torch.Tensor] = []
    handle = list(model.children())[-2].register_forward_hook(lambda m, a, out: features.append(out.detach()))
    before = _step(model, optimizer, inputs, targets)
    with torch.no_grad():
        decay = float(before - F.cross_entropy(model(inputs), targets))
    handle.remove()
    start, end = features
    return float((end - start).norm() / start.norm()) / decay, decay / H


def test_the_report_shows_both_states_and_both_rates() -> None:
    report = answer(parse_request(asked_for(MLP, "adamw")))
    start, after = report.measurements
    assert (start.step, after.step) == (0, 1)
    assert [layer.angle.mean for layer in start.layers[:-1]] == [None] * 4
    assert start.layers[-1].feature_rms.mean == 0
    assert start.loss == pytest.approx(2.302585)
    assert 1 / 1.5 < tau(after) / RELATIVE_SENSITIVITY < 1.5
    *hidden, output = report.recommendation.blocks
    assert all(block.first_lr is None and block.lr > 0 for block in hidden)
    assert output.init_std == 0
    assert output.first_lr > 0
    assert output.lr > 0
    assert "starts at zero; first step at" in output.note
    assert report.warnings == ()


def test_training_makes_that_first_step_and_the_drift_is_from_the_state_after_it() -> None:
    fields = {"seeds": [0, 1], "steps": 40, "every": 20}
    report = answer(parse_request(asked_for(RESNET, "adamw", measurement=fields)))
    assert [m.step for m in report.measurements] == [0, 1, 20, 40]
    start, after, *_, last = report.measurements
    assert after.loss == pytest.approx(report.evidence.loss_curves.recommended[1], rel=1e-4)
    assert all(1 / 1.6 < value / RELATIVE_SENSITIVITY < 1.6 for value in [tau(after)])
    assert start.layers[0].balanced_rate_drift is None
    assert after.layers[0].balanced_rate_drift.values == (1.0, 1.0)
    assert last.loss < 0.5
    assert report.warnings == ()


def test_the_first_rate_falls_with_the_width() -> None:
    """App. B: η_L(0) = Θ(√L / (m ‖b_L(0)‖²)) for the MLP."""
    spec = {
        "kind": "recommend", "loss": "mse", "optimizer": {"name": "sgd"}, "scaling": {"zero_output": True},
        "data": {"kind": "sphere", "batch_size": 1, "targets": "ones"}, "measurement": {"seeds": [0, 1, 2, 3]},
    }  # fmt: skip

    def first_lr(width: int) -> float:
        architecture = {"family": "mlp", "input_dim": 10, "width": width, "depth": 4, "output_dim": 1}
        scaling = {"zero_output": True, "relative_sensitivity": 10.0}  # a step that stays far from y
        report = answer(parse_request({**spec, "architecture": architecture, "scaling": scaling}))
        return float(report.recommendation.blocks[-1].first_lr)

    assert first_lr(64) / first_lr(512) == pytest.approx(8.0, rel=0.3)


def test_probes_begin_with_that_step_too() -> None:
    """Against a loop of torch's own: the first step at ``first_lr``, then ``lr``, as a training of 40 steps begins.

    Its warm-up are two steps, at half the rates (which ``first_lr`` replaces) and at all of them; then a cosine.
    """
    steps = 10
    asked = parse_request(asked_for(MLP, "adamw", scaling={"refine": {"steps": steps, "factors": [0.5, 1.0]}}))
    report = answer(asked)
    advice = report.recommendation
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    for probe in advice.refinement.probes:
        model = build(asked.architecture, seed=0).module.double()
        _redraw(asked, model, {p.name: p.init_std for p in advice.parameters})
        report.apply(model)
        groups = report.param_groups(model)
        optimizer = torch.optim.AdamW([{**g, "lr": g.get("first_lr", g["lr"])} for g in groups], weight_decay=0.0)
        logs = []
        for step in range(steps):
            batch = source.batch(0, FIRST_STEP + step % (steps - 1))  # the last step has the first one's
            logs.append(math.log(_step(model, optimizer, *batch)))
            cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - 1) / 38))  # of the next step
            for group, given in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = given["lr"] / advice.refinement.factor * probe.factor * cosine
        assert probe.mean_log_loss == pytest.approx([statistics.fmean(logs)], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"kind": "measure"}, "only kind 'recommend' under rule 'fsc'"),
        ({"scaling": {"rule": "pytorch_default"}}, "only kind 'recommend' under rule 'fsc'"),
        ({"frozen": ["output"]}, "the output block must train"),
        ({"architecture": {**RESNET, "branch_scale": {"target_angle": 0.7}}}, "no angle to aim at"),
    ],
)
def test_what_it_does_not_go_with(changes: dict[str, Any], bound: str) -> None:
    document = asked_for(MLP, "adamw")
    document = {**document, **changes, "scaling": {**document["scaling"], **changes.get("scaling", {})}}
    with pytest.raises(SpecError) as caught:
        parse_request(document)
    [error] = caught.value.errors
    assert error.field == "scaling.zero_output"
    assert bound in error.bound
