"""Properties as verdicts: closed cases of the pure functions, and whole reports against torch alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featurespeed.cli.tables import rendered
from featurespeed.contract import Report, SpecError, parse_request
from featurespeed.defaults import CONTRIBUTION_FACTOR, FEATURE_RMS_RANGE, FEATURE_STEPS, STABILITY_BOUND
from featurespeed_workers import measure, recommend
from featurespeed_workers.architectures import build
from featurespeed_workers.data import load
from featurespeed_workers.local import answer
from featurespeed_workers.measurement import LayerValues, StateMeasurement
from featurespeed_workers.properties import SeedState, verdicts
from featurespeed_workers.stability import LayerStability, Stability
from tests.measurement.operators import OnceDifferentiable

NAMES = ("input", "hidden_2", "hidden_3", "output")
PROPERTIES = ("SP", "FL", "LD", "BC", "FS", "BS", "S")


def state(
    *,
    rms=(1.0, 1.0, 1.0, 1.0),
    speed=(1.0, 1.0, 1.0, 1.0),
    parts=(1.0, 1.0, 1.0, 1.0),
    shares=(0.25, 0.25, 0.25, 0.25),
    loss=2.0,
    master_lr: float | None = 1.0,
    backward=(1.0, 1.0, 1.0, 1.0),
    gradient=(1.0, 1.0, 1.0, None),
    stable=True,
    feature_step=1.0,
) -> SeedState:
    layers = tuple(
        LayerValues(n, 8, 1.0, 0.5, r, v, 1.0, 1.0, c, 1.0) for n, r, v, c in zip(NAMES, rms, speed, parts, strict=True)
    )
    measured = StateMeasurement(loss, math.fsum(parts), 0.0, layers, (1.0,) * 4, parts, "exact")
    of_layers = tuple(LayerStability(n, 0.0, b, g, None) for n, b, g in zip(NAMES, backward, gradient, strict=True))
    return SeedState(measured, shares, master_lr, feature_step, Stability(of_layers, None) if stable else None)


def test_what_is_as_it_should_be_holds_and_gives_no_reason() -> None:
    found = verdicts([state()])
    for name in PROPERTIES:
        verdict = getattr(found, name)
        assert verdict.holds
        assert verdict.reason is None
        assert verdict.range[0] <= verdict.value <= verdict.range[1]


FAILURES = {
    "SP small": ("SP", {"rms": (1, 0.02, 1.5, 9)}, "hidden_2", 0.02, "rms 0.02: 50 × too small"),
    "SP large": ("SP", {"rms": (1, 0.6, 30.0, 1)}, "hidden_3", 30, "rms 30: 30 × too large"),
    "SP dead": ("SP", {"rms": (1, 0.0, 30.0, 1)}, "hidden_2", 0, "are zero"),
    "FL slow": ("FL", {"master_lr": 1e-4, "speed": (1, 1, 20, 1)}, "hidden_3", 2e-3, "rates are 500 × too small"),
    "FL lazy": ("FL", {"speed": (1, 1, 2e-3, 1)}, "hidden_3", 2e-3, "output's scale is too large (lazy), by about 700"),
    "FL slow, not lazy": ("FL", {"master_lr": 0.1, "speed": (1, 1, 2, 1)}, "hidden_3", 0.2, "are 5 × too small"),
    "FL fast": ("FL", {"speed": (1, 1, 50.0, 1)}, "hidden_3", 50, "5000 % in a step, not by 100 %: learning rates"),
    "FL still": ("FL", {"speed": (1, 1, 0.0, 1)}, "hidden_3", 0, "no block before them learns"),
    "LD small": ("LD", {"master_lr": 1e-3}, None, 2e-3, "0.2 % of itself to first order, 50 × below 10 %"),
    "LD large": ("LD", {"loss": 0.01}, None, 400, "40 × above 1000 %"),
    "LD up": ("LD", {"parts": (1.0, -2.0, 0.0, 0.0)}, None, -0.5, "raises the loss"),
    "BC small": ("BC", {"parts": (1, 0.01, 1, 1)}, "hidden_2", 0.0133, "0.33 % of the decay, not 25 %: its learning"),
    "BC large": ("BC", {"parts": (1, 1, 1, 297)}, "input", 0.0133, "75 × too small"),
    "BC shares": ("BC", {"shares": (0.6, 0.3, 0.1, 0), "parts": (1, 1, 8, 0)}, "hidden_3", 8, "not 10 %"),
    "BC against": ("BC", {"parts": (2, -0.1, 1, 1)}, "hidden_2", -0.1026, "points against the gradient"),
    "FS": ("FS", {"speed": (1, 80, 1, 9e9)}, "hidden_2", 20, "features of block 'hidden_2' would change by 20 ×"),
    "BS": ("BS", {"backward": (1, 35, None, 9e9)}, "hidden_2", 35, "backward pass of block 'hidden_2' would change"),
    "S": ("S", {"gradient": (1, None, 2, 35)}, "output", 35, "gradient of block 'output' would change by 35"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_names_the_worst_block_and_its_number(case: str) -> None:
    name, given, block, value, words = FAILURES[case]
    verdict = getattr(verdicts([state(**given)]), name)
    assert verdict.holds is False
    assert verdict.block == block
    assert verdict.value == pytest.approx(value, rel=1e-2)
    assert words in verdict.reason
    assert block is None or repr(block) in verdict.reason


def test_feature_learning_is_judged_by_the_step_that_was_asked_for() -> None:
    assert verdicts([state(master_lr=2.0, feature_step=0.3)]).FL.holds is False
    assert verdicts([state(master_lr=2.0, feature_step=3.0)]).FL.holds


def test_values_are_means_over_seeds_and_the_worst_block_is_that_of_the_means() -> None:
    found = verdicts([state(rms=(0.6, 1, 0.1, 1)), state(rms=(0.6, 1, 1.5, 1))]).SP
    assert (found.block, found.value, found.holds) == ("input", 0.6, True)
    worst = verdicts([state(rms=(0.6, 1, 0.1, 1)), state(rms=(0.6, 1, 0.3, 1))]).SP
    assert worst.block == "hidden_3"
    assert worst.over_seeds.values == (0.1, 0.3)
    assert worst.value == worst.over_seeds.mean == pytest.approx(0.2)


def test_what_is_not_known_is_neither_true_nor_false() -> None:
    found = verdicts([state(master_lr=None, stable=False)])
    for name in ("FL", "LD", "BS", "S"):
        verdict = getattr(found, name)
        assert (verdict.holds, verdict.value) == (None, None)
        assert verdict.reason
    assert verdicts([state(parts=(0.0, 0.0, 0.0, 0.0))]).BC.holds is None
    assert verdicts([state(rms=(1.0, 1.0, 0.0, 1.0))]).FL.holds is None


MLP = {"family": "mlp", "input_dim": 64, "width": 32, "depth": 5, "output_dim": 10}
TRANSFORMER = {
    "family": "transformer", "layers": 2, "width": 16, "heads": 2, "output_dim": 10,
    "image": {"height": 8, "width": 8, "patch": 4},
}  # fmt: skip


def spec(architecture: dict[str, Any], **fields: Any) -> dict[str, Any]:
    data = {"kind": "digits", "batch_size": 32}
    basis = {"kind": "recommend", "architecture": architecture, "data": data, "loss": "cross_entropy"}
    return {**basis, "measurement": {"seeds": [0, 1], "dtype": "float64"}, **fields}


@pytest.mark.parametrize("architecture", [MLP, TRANSFORMER], ids=["mlp", "vit"])
@pytest.mark.parametrize("optimizer", [{"name": "sgd", "momentum": 0.9, "nesterov": True}, {"name": "adamw"}])
def test_a_recommendation_has_what_pytorch_lacks(architecture, optimizer) -> None:
    report = answer(parse_request(spec(architecture, optimizer=optimizer)))
    before, after = report.properties.before, report.properties.after
    assert not (before.FL.holds and before.LD.holds)
    for name in PROPERTIES:
        assert getattr(after, name).holds, getattr(after, name)
    kappa = FEATURE_STEPS[optimizer["name"]]
    assert after.FL.value == pytest.approx(kappa, rel=0.4)  # on one batch of four
    assert before.FL.range == after.FL.range == (kappa / 4, kappa * 4)
    assert report.warnings == ()
    if architecture is MLP:
        assert not before.SP.holds
        assert report.stability.backward_formula_residual < 1e-10
    else:  # by design its stream grows to √2
        assert after.SP.value == pytest.approx(math.sqrt(2), rel=0.1)
    text = rendered(report)
    assert before.FL.reason in text
    assert "gradient speed per nat" in text
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_before_is_pytorch_alone() -> None:
    """SP, LD and FL before, from the module as PyTorch makes it and two real steps of a tiny rate."""
    asked = parse_request(spec(MLP, optimizer={"name": "sgd"}, measurement={"seeds": [3], "dtype": "float64"}))
    model = build(asked.architecture, seed=3).module.double()
    inputs, targets = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu")).batch(3, 0)
    features: list[torch.Tensor] = []
    for block in list(model.children())[:-1]:
        block.register_forward_hook(lambda m, a, out: features.append(out.detach()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, second = features[:4], features[4:]
    report = answer(asked)
    before = report.properties.before
    rms = [float(f.square().mean().sqrt()) for f in first]
    assert before.SP.value == pytest.approx(max(rms, key=lambda x: abs(math.log(x))), rel=1e-9)
    change = float((second[-1] - first[-1]).norm() / first[-1].norm())
    assert before.FL.value == pytest.approx(change, rel=1e-2)
    assert before.LD.value == pytest.approx((losses[0] - losses[1]) / losses[0], rel=1e-2)
    shown = report.before
    assert shown.loss == pytest.approx(losses[0], rel=1e-9)
    assert [layer.feature_rms.mean for layer in shown.layers[:-1]] == pytest.approx(rms, rel=1e-9)
    speeds = [float((b - a).square().mean().sqrt()) / 1e-3 for a, b in zip(first, second, strict=True)]
    assert [layer.feature_speed.mean for layer in shown.layers[:-1]] == pytest.approx(speeds, rel=1e-2)


def test_measure_judges_what_was_measured() -> None:
    asked = spec(MLP, kind="measure", optimizer={"name": "sgd"}, learning_rates=0.1)
    del asked["measurement"]["dtype"]
    found = answer(parse_request(asked))
    assert found.properties.after is None
    assert found.stability is None
    assert found.before is None  # what it judges is measured
    assert found.properties.before.FL.value is not None
    assert found.properties.before.S.holds is None
    balanced = answer(parse_request({**asked, "learning_rates": "balanced"})).properties.before
    assert (balanced.FL.holds, balanced.LD.holds, balanced.BC.holds) == (None, None, True)
    assert balanced.BC.value == pytest.approx(1.0)
    stable = answer(parse_request({**asked, "measurement": {"seeds": [0], "stability": True}}))
    assert stable.stability.layers[1].relative_backward_speed.mean > 0
    assert stable.properties.before.S.holds is not None


def test_weights_of_contributions_are_what_blocks_are_judged_by() -> None:
    weights = {"input": 8.0, "hidden": 1.0, "output": 0.0}
    scaling = {"contributions": weights}
    report = answer(parse_request(spec(MLP, optimizer={"name": "sgd"}, scaling=scaling)))
    assert report.properties.after.BC.holds
    assert report.properties.after.BC.value == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "momentum": 0.9}, {"name": "adamw"}])
def test_an_output_that_starts_at_zero_has_its_properties_after_the_first_step(optimizer) -> None:
    after = answer(parse_request(spec(MLP, optimizer=optimizer, scaling={"zero_output": True}))).properties.after
    for name in ("SP", "FL", "LD", "BC", "FS"):
        assert getattr(after, name).holds, getattr(after, name)
    assert after.S.holds is None


def test_probes_move_the_step_that_is_asked_for() -> None:
    """Refined, FL is judged by the κ that was chosen."""
    report = answer(parse_request(spec(MLP, optimizer={"name": "sgd"}, scaling={"refine": {"steps": 20}})))
    chosen = report.recommendation.feature_step
    assert chosen != FEATURE_STEPS["sgd"]
    assert report.properties.after.FL.value == pytest.approx(chosen, rel=0.4)
    assert report.properties.after.FL.range == (chosen / 4, chosen * 4)
    assert report.properties.before.FL.range == (chosen / 4, chosen * 4)


def test_before_and_after_are_judged_by_the_step_that_the_rule_took() -> None:
    """Under mse that is less than the default: what PyTorch's state is said to lack is what the recommendation has."""
    report = answer(parse_request({**spec(MLP, optimizer={"name": "sgd"}), "loss": "mse"}))
    taken = report.recommendation.feature_step
    assert taken < 0.5 * FEATURE_STEPS["sgd"]
    for state in (report.properties.before, report.properties.after):
        low, high = state.FL.range
        assert math.sqrt(low * high) == pytest.approx(taken, rel=1e-12)


def test_a_step_under_momentum_is_the_one_that_it_builds_up_to() -> None:
    rates = {"learning_rates": 0.01, "kind": "measure"}
    plain = answer(parse_request(spec(MLP, optimizer={"name": "sgd"}, **rates))).properties.before
    for nesterov in (False, True):
        optimizer = {"name": "sgd", "momentum": 0.9, "nesterov": nesterov}
        built_up = answer(parse_request(spec(MLP, optimizer=optimizer, **rates))).properties.before
        assert built_up.FL.value == pytest.approx(10 * plain.FL.value, rel=1e-9)
        assert built_up.FS.value == pytest.approx(plain.FS.value, rel=1e-9)


def test_kernel_view_in_a_report() -> None:
    asked = spec(MLP, kind="measure", optimizer={"name": "sgd"}, learning_rates=0.1)
    asked["measurement"] = {"seeds": [0, 1], "kernel_probes": 3}
    report = answer(parse_request(asked))
    for layer in report.measurements[0].layers:
        assert 0 < layer.kernel_cos.mean <= 1
        assert layer.kernel_cos.mean == pytest.approx(sum(layer.kernel_cos.values) / 2)
        assert f"{layer.kernel_cos.mean:.3f} ± {layer.kernel_cos.standard_error:.3f}" in rendered(report)


@pytest.mark.parametrize(
    ("optimizer", "probes", "words"),
    [
        ({"name": "adam"}, 4, "measurement.kernel_probes: needs optimizer 'sgd', not 'adam'"),
        ({"name": "sgd", "weight_decay": 0.1}, 4, "measurement.kernel_probes: needs optimizer.weight_decay 0, not 0.1"),
        ({"name": "sgd"}, 1, "measurement.kernel_probes: one probe has no error bar"),
        ({"name": "sgd"}, 1001, "measurement.kernel_probes: Input should be less than or equal to 1000"),
    ],
)
def test_probes_that_make_no_sense_are_refused(optimizer, probes, words) -> None:
    with pytest.raises(SpecError, match=words):
        parse_request(spec(MLP, optimizer=optimizer, measurement={"kernel_probes": probes}))


def test_own_modules() -> None:
    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(16, 8, generator=generator).double(), torch.randint(3, (16,), generator=generator))
        for _ in range(4)
    ]
    report = recommend(model, data, optimizer="sgd", seeds=(0, 1))
    assert report.properties.before.FL.holds is False
    assert report.properties.after.FL.holds
    assert report.before.layers[0].feature_rms.values[1] == pytest.approx(
        measure(model(1), data, optimizer="sgd").measurements[0].layers[0].feature_rms.mean, rel=1e-12
    )
    assert report.properties.after.BS.holds
    lazy = recommend(model, data, optimizer="sgd", stability=False)
    assert lazy.stability is None
    assert lazy.properties.after.BS.holds is None
    own = model(0)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
    now = measure(own, data, optimizer=optimizer, learning_rates="optimizer", stability=True)
    first = now.measurements[0]
    expected = first.layers[1].feature_speed.mean / first.layers[1].feature_rms.mean
    assert now.properties.before.FL.value == pytest.approx(expected, rel=1e-12)
    assert now.properties.before.LD.value == pytest.approx(first.loss_decay / first.loss, rel=1e-12)
    assert now.stability.layers[0].relative_gradient_speed.mean > 0


def test_an_operator_without_second_derivative_leaves_a_warning() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(OnceDifferentiable(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)).double()
    data = [(torch.randn(6, 4).double(), torch.tensor([0, 1, 0, 1, 1, 0])) for _ in range(4)]
    report = recommend(module, data, optimizer="sgd")
    assert report.stability is None
    assert report.properties.after.S.holds is None
    assert report.properties.after.FS.holds
    assert any("stability is not measured: trying to differentiate twice" in w for w in report.warnings)


def test_a_model_that_cannot_be_measured_as_it_is_leaves_a_warning() -> None:
    """Its hidden weights are so large that the loss overflows; the recommendation sets them right."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)).double()
    with torch.no_grad():
        module[1].weight.mul_(1e4)
    data = [(torch.randn(6, 4).double(), torch.zeros(6)) for _ in range(4)]
    report = recommend(module, data, loss=lambda f, y: (f**2).sum(-1).exp().mean(), optimizer="sgd")
    assert report.properties.before is None
    assert report.properties.after.SP.holds
    assert any("before, it cannot be measured: the loss is inf" in w for w in report.warnings)
    assert "gradient speed per nat" in rendered(report)


def test_features_that_vanish_are_measured_all_the_same() -> None:
    """400 layers of PyTorch's initialization in float32."""
    deep = {"family": "mlp", "input_dim": 64, "width": 8, "depth": 400, "output_dim": 10}
    asked = spec(deep, kind="measure", learning_rates=0.1, measurement={"seeds": [0], "stability": True})
    found = answer(parse_request(asked))
    assert found.properties.before.SP.value == 0
    assert found.properties.before.S.holds is None


def test_bounds_are_those_of_the_defaults() -> None:
    found = verdicts([state(feature_step=2.0)])
    assert found.SP.range == FEATURE_RMS_RANGE
    assert found.FL.range == (0.5, 8.0)
    assert found.BC.range == (1 / CONTRIBUTION_FACTOR, CONTRIBUTION_FACTOR)
    assert found.S.range == (0.0, STABILITY_BOUND)
