"""Rates balanced anew in the middle of a training: held against measurements and torch's own steps, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from featurespeed.contract import AdamW, Sgd
from featurespeed.defaults import contribution_weights
from featurespeed_workers import MeasurementError, load_checkpoint, measure, recommend, save_checkpoint
from tests.measurement.identity import same

BLOCKS = {"1": ["0"], "3": [], "5": []}
EVEN = {"input": 1.0, "hidden": 1.0, "output": 1.0}
SHARES = {"1": 1 / 3, "3": 1 / 3, "5": 1 / 3}  # one hidden block: 1 : √1 : 1


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))
    return nn.Sequential(*parts).double()


def batches(seed: int = 100):
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(24, 6, generator=generator, dtype=torch.float64)
        yield x, x[:, :4].argmax(1)


def four(seed: int = 100):
    stream = batches(seed)
    return [next(stream) for _ in range(4)]


def loss_of(model: nn.Module, batch) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def step(model: nn.Module, optimizers, batch) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss_of(model, batch).backward()
    for optimizer in optimizers:
        optimizer.step()


def muon(model: nn.Module) -> list[torch.optim.Optimizer]:
    rest = [p for name, p in model.named_parameters() if name != "3.weight"]
    return [torch.optim.Muon([model[3].weight], lr=0.01), torch.optim.AdamW(rest, lr=0.003)]


KINDS = {
    "sgd": lambda m: [torch.optim.SGD(m.parameters(), lr=0.1)],
    "momentum": lambda m: [torch.optim.SGD(m.parameters(), lr=0.03, momentum=0.8, weight_decay=1e-3)],
    "nesterov": lambda m: [torch.optim.SGD(m.parameters(), lr=0.03, momentum=0.8, nesterov=True)],
    "adam": lambda m: [torch.optim.Adam(m.parameters(), lr=0.003)],
    "adamw": lambda m: [torch.optim.AdamW(m.parameters(), lr=0.003, weight_decay=0.02)],
    "muon": muon,
}


def trained(kind: str, steps: int = 12):
    model = net()
    optimizers = KINDS[kind](model)
    stream = batches(7)
    for _ in range(steps):
        step(model, optimizers, next(stream))
    return model, optimizers


def everything(model: nn.Module, optimizers) -> object:
    return copy.deepcopy(
        (
            dict(model.state_dict()),
            [p.grad for p in model.parameters()],
            [o.state_dict() for o in optimizers],
            torch.get_rng_state(),
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_measured_contributions_are_the_promised_parts(kind) -> None:
    model, optimizers = trained(kind)
    before = everything(model, optimizers)
    report = recommend(model, four(), optimizer=optimizers, blocks=BLOCKS, checkpoint=True)
    advice = report.recommendation
    rates = {block.name: block.lr / advice.master_lr for block in advice.blocks}
    found = [measure(model, [b], optimizer=optimizers, blocks=BLOCKS, learning_rates=rates) for b in four()]
    measured = [report.measurements[0] for report in found]
    for i, name in enumerate(BLOCKS):
        mean = sum(m.layers[i].contribution.mean for m in measured) / 4
        assert mean == pytest.approx(SHARES[name], rel=1e-9)
    speeds = [m.layers[-2].feature_speed.mean / m.layers[-2].feature_rms.mean for m in measured]
    assert advice.relative_sensitivity == pytest.approx(sum(speeds) / 4, rel=1e-9)
    assert advice.master_lr == pytest.approx(advice.feature_step / advice.relative_sensitivity, rel=1e-9)
    for layer, other in zip(report.measurements[0].layers, measured[0].layers, strict=True):
        assert layer.feature_speed.mean == pytest.approx(other.feature_speed.mean, rel=1e-9)
        assert layer.contribution.mean == pytest.approx(other.contribution.mean, rel=1e-9)
    assert same(everything(model, optimizers), before)


@pytest.mark.parametrize("kind", ["momentum", "nesterov", "adamw"])
def test_a_real_step_lowers_the_loss_by_each_blocks_part(kind) -> None:
    """Steps of torch's optimizer, one block's rate on at a time: central differences of the mean loss over δt."""
    model, optimizers = trained(kind)
    report = recommend(model, four(), optimizer=optimizers, blocks=BLOCKS, checkpoint=True)
    master = report.recommendation.master_lr
    groups = report.param_groups(model)
    assert [group["name"] for group in groups] == list(BLOCKS)

    def change(block: str, size: float) -> float:
        """Of the loss on the batches: each takes the step that is its own."""
        total = 0.0
        for batch in four():
            twin, (own,) = copy.deepcopy((model, optimizers))
            first = loss_of(twin, batch)
            names = {p: n for n, p in twin.named_parameters()}
            [old] = own.param_groups
            own.param_groups = [
                {**old, "params": [p for p in names if name_of(names[p]) == g["name"]],
                 "lr": size * g["lr"] / master * (g["name"] == block)}
                for g in groups
            ]  # fmt: skip
            start = {n: p.detach().clone() for n, p in twin.named_parameters()}
            own.zero_grad()
            first.backward()
            own.step()
            forth = loss_of(twin, batch).item()
            with torch.no_grad():
                for n, p in twin.named_parameters():
                    p.copy_(2 * start[n] - p)
            total += (forth - loss_of(twin, batch).item()) / (2 * size)
        return total / 4

    def name_of(parameter: str) -> str:
        return {"0": "1"}.get(parameter.split(".")[0], parameter.split(".")[0])

    for block, part in SHARES.items():
        assert -change(block, 1e-5) == pytest.approx(part, rel=1e-5)


def test_a_file_and_the_running_objects_give_the_same_numbers(tmp_path) -> None:
    model, optimizers = trained("adamw")
    save_checkpoint(tmp_path / "a.safetensors", model, optimizers)
    running = recommend(model, four(), optimizer=optimizers, blocks=BLOCKS, checkpoint=True)
    fresh = net()
    other = torch.optim.AdamW(fresh.parameters(), lr=0.5, weight_decay=0.02)
    before = everything(fresh, [other])
    for optimizer in (other, AdamW(name="adamw", weight_decay=0.02)):
        found = recommend(fresh, four(), optimizer=optimizer, blocks=BLOCKS, checkpoint=str(tmp_path / "a.safetensors"))
        same_but_time = {"provenance": found.provenance}
        assert running.model_copy(update=same_but_time) == found
    assert same(everything(fresh, [other]), before)


def test_before_is_at_the_present_rates_and_after_at_the_new(tmp_path) -> None:
    model, optimizers = trained("momentum")
    report = recommend(model, four(), optimizer=optimizers, blocks=BLOCKS, checkpoint=True)
    batch = four()[:1]
    now = measure(model, batch, optimizer=optimizers, blocks=BLOCKS, learning_rates="optimizer").measurements[0]
    rates = {block.name: block.lr for block in report.recommendation.blocks}
    new = measure(model, batch, optimizer=optimizers, blocks=BLOCKS, learning_rates=rates).measurements[0]
    for state, measured in ((report.properties.before, now), (report.properties.after, new)):
        last = measured.layers[-2]
        assert state.FL.value == pytest.approx(last.feature_speed.mean / last.feature_rms.mean, rel=1e-9)
        assert state.LD.value == pytest.approx(measured.loss_decay / measured.loss, rel=1e-9)
    assert report.properties.before.SP.value == report.properties.after.SP.value
    assert report.properties.after.BC.holds
    save_checkpoint(tmp_path / "weights.safetensors", model)
    unknown = recommend(net(), batch, optimizer="sgd", blocks=BLOCKS, checkpoint=tmp_path / "weights.safetensors")
    at_default = measure(model, batch, optimizer="sgd", blocks=BLOCKS, learning_rates=0.001).measurements[0]
    decay = at_default.loss_decay / at_default.loss
    assert unknown.properties.before.LD.value == pytest.approx(decay, rel=1e-9)


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_features_keep_their_pace_unless_another_is_asked_for(kind, tmp_path) -> None:
    model, optimizers = trained(kind)
    asks = {"optimizer": optimizers, "blocks": BLOCKS, "checkpoint": True}

    def pace(rates) -> float:
        """The relative change of the last hidden feature in a step: mean over the batches."""
        each = [measure(model, [b], optimizer=optimizers, blocks=BLOCKS, learning_rates=rates) for b in four()]
        last = [report.measurements[0].layers[-2] for report in each]
        return sum(layer.feature_speed.mean / layer.feature_rms.mean for layer in last) / 4

    for asked, expected in ((None, pace("optimizer")), (0.125, 0.125)):
        advice = recommend(model, four(), **asks, feature_step=asked).recommendation
        assert advice.feature_step == pytest.approx(expected, rel=1e-9)
        assert pace({block.name: block.lr for block in advice.blocks}) == pytest.approx(expected, rel=1e-9)
    # not known, or nothing moves: no more than a quarter of the loss
    save_checkpoint(tmp_path / "a.safetensors", model, optimizers)
    without = {name: t for name, t in load_file(tmp_path / "a.safetensors").items() if not name.endswith(".lr")}
    save_file(without, tmp_path / "a.safetensors")
    stopped = copy.deepcopy((model, optimizers))
    for group in stopped[1][0].param_groups:
        group["lr"] = 0.0
    contract = {
        "momentum": Sgd(name="sgd", momentum=0.8, weight_decay=1e-3), "adamw": AdamW(name="adamw", weight_decay=0.02),
    }[kind]  # fmt: skip
    loss = sum(loss_of(model, b).item() for b in four()) / 4
    for report in (
        recommend(stopped[0], four(), **{**asks, "optimizer": stopped[1]}),
        recommend(net(), four(), blocks=BLOCKS, optimizer=contract, checkpoint=tmp_path / "a.safetensors"),
    ):
        assert report.recommendation.master_lr == pytest.approx(loss / 4, rel=1e-9)
        assert report.recommendation.feature_step < 1.2


def test_a_learning_rate_that_is_not_known_is_told(tmp_path) -> None:
    """κ is then that of a start, which may be a hundred times the present pace."""
    model, optimizers = trained("adamw")
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model, optimizers)
    asks = {"blocks": BLOCKS, "optimizer": "adamw", "checkpoint": path}
    assert not any("not known" in warning for warning in recommend(net(), four(), **asks).warnings)
    every = load_file(path)
    rates = [name for name in every if name.endswith(".lr")]
    names = [name for name, _ in model.named_parameters()]
    for gone, told in (
        ([f"optimizer.param_groups.{names[1]}.lr"], f"learning rate of {names[1]!r} is not known"),
        (rates, f"learning rate of {names[0]!r} and {len(names) - 1} more is not known"),
    ):
        save_file({name: t for name, t in every.items() if name not in gone}, path)
        [warning] = [w for w in recommend(net(), four(), **asks).warnings if "not known" in w]
        assert told in warning


def test_what_is_frozen_may_be_in_no_group_of_the_optimizer(tmp_path) -> None:
    model = net()
    frozen = next(iter(model.parameters())).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p is not frozen], lr=0.001)
    for b in four():
        optimizer.zero_grad()
        loss_of(model, b).backward()
        optimizer.step()
    save_checkpoint(tmp_path / "a.safetensors", model, optimizer)
    reports = [
        recommend(model, four(), optimizer=optimizer, blocks=BLOCKS, checkpoint=where)
        for where in (True, tmp_path / "a.safetensors")
    ]
    assert reports[0].recommendation == reports[1].recommendation


def test_scales_are_told_and_stay() -> None:
    model, optimizers = trained("adamw")
    report = recommend(model, four(), optimizer=optimizers, blocks=BLOCKS, checkpoint=True, granularity="tensor")
    advice = report.recommendation
    assert advice.scales == "kept"
    parameters = dict(model.named_parameters())
    for tensor in advice.parameters:
        p = parameters[tensor.name].detach()
        assert (tensor.init_mean, tensor.init_std) == pytest.approx((p.mean().item(), p.std(correction=0).item()))
        assert tensor.init_ratio == pytest.approx(1)
    before = copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(ValueError, match="keeps the scales of its checkpoint"):
        report.apply(model)
    assert same(dict(model.state_dict()), before)
    groups = report.param_groups(model)
    assert len(groups) == len(parameters)
    assert recommend(model, four(), optimizer="sgd", blocks=BLOCKS).recommendation.scales == "set"


def test_seeds_are_of_batches_alone() -> None:
    model, optimizers = trained("adamw")
    report = recommend(model, four, optimizer=optimizers, blocks=BLOCKS, checkpoint=True, seeds=(1, 2))
    single = [recommend(model, four(s), optimizer=optimizers, blocks=BLOCKS, checkpoint=True) for s in (1, 2)]
    for i, block in enumerate(report.recommendation.blocks):
        assert block.init_std_over_seeds.factor_sd == pytest.approx(1)
        alone = [r.recommendation.blocks[i].lr for r in single]
        assert block.lr_over_seeds.values == pytest.approx(alone, rel=1e-12)
        assert alone[0] != pytest.approx(alone[1], rel=1e-3)


def test_an_optimizer_without_state_begins_anew(tmp_path) -> None:
    """Then momentum is still to build up: the rate is that of the steady step, 1 − μ of plain gradient descent's."""
    model, _ = trained("sgd")
    save_checkpoint(tmp_path / "a.safetensors", model)
    asks = {"blocks": BLOCKS, "checkpoint": True, "feature_step": 1.0}
    plain = recommend(model, four(), optimizer="sgd", **asks)
    assert not any("no state" in warning for warning in plain.warnings)
    momentum = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = [recommend(model, four(), optimizer=momentum, **asks)]
    found.append(recommend(model, four(), optimizer=momentum, **{**asks, "checkpoint": tmp_path / "a.safetensors"}))
    for report in found:
        assert report.recommendation.master_lr == pytest.approx(plain.recommendation.master_lr, rel=1e-9)
        assert any("the optimizer has no state" in warning for warning in report.warnings)
        for block, other in zip(report.recommendation.blocks, plain.recommendation.blocks, strict=True):
            assert block.lr == pytest.approx(0.1 * other.lr, rel=1e-9)


def test_a_block_whose_update_raises_the_loss_is_named() -> None:
    model, [optimizer] = trained("momentum")
    for p in model[3].parameters():
        optimizer.state[p]["momentum_buffer"] *= -100
    with pytest.raises(MeasurementError, match="block '3' has no balanced learning rate: its update increases"):
        recommend(model, four(), optimizer=optimizer, blocks=BLOCKS, checkpoint=True)
    weights = {"hidden": 0.0}  # left out, it stands still
    report = recommend(model, four(), optimizer=optimizer, blocks=BLOCKS, checkpoint=True, contributions=weights)
    assert [block.lr > 0 for block in report.recommendation.blocks] == [True, False, True]
    assert report.recommendation.contributions == {**contribution_weights(1), "hidden": 0.0}


def test_a_direction_against_one_batch_does_not_matter_if_the_mean_is_downhill() -> None:
    model, [optimizer] = trained("momentum", steps=1)
    batch = next(batches(3))
    other = (batch[0], (batch[1] + 1) % 4)  # a batch that pulls the other way
    momentum = {p: optimizer.state[p]["momentum_buffer"] for p in model.parameters()}
    for p, g in zip(
        model.parameters(), torch.autograd.grad(loss_of(model, batch), list(model.parameters())), strict=True
    ):
        momentum[p].copy_(20 * g)
    given = [batch, batch, batch, other]
    alone = [measure(model, [b], optimizer=optimizer, blocks=BLOCKS, learning_rates=1.0) for b in given]
    assert any(layer.contribution.mean < 0 for layer in alone[3].measurements[0].layers)
    report = recommend(model, given, optimizer=optimizer, blocks=BLOCKS, checkpoint=True)
    assert all(block.lr > 0 for block in report.recommendation.blocks)


def test_frozen_blocks_and_states_of_some(tmp_path) -> None:
    model, optimizers = trained("adamw")
    model[:2].requires_grad_(False)
    save_checkpoint(tmp_path / "a.safetensors", model, optimizers)
    report = recommend(model, four(), optimizer=optimizers, blocks=BLOCKS, checkpoint=tmp_path / "a.safetensors")
    assert [layer.contribution.mean > 0 for layer in report.measurements[0].layers] == [False, True, True]


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_a_parameter_without_state_takes_a_first_step_as_torchs_does(kind, tmp_path) -> None:
    model, optimizers = trained(kind)
    del optimizers[0].state[model[5].bias]
    batch = four()[:1]
    report = recommend(
        model, batch, optimizer=optimizers, blocks=BLOCKS, checkpoint=True, granularity="tensor", contributions=EVEN
    )
    [doubt] = [warning for warning in report.warnings if "no state" in warning]
    assert "no state of '5.bias', but of others" in doubt
    save_checkpoint(tmp_path / "a.safetensors", model, optimizers)
    again = recommend(
        model, batch, optimizer=optimizers, blocks=BLOCKS, checkpoint=tmp_path / "a.safetensors", granularity="tensor",
        contributions=EVEN,
    )  # fmt: skip
    assert again.recommendation == report.recommendation
    twin, (own,) = copy.deepcopy((model, optimizers))
    step(twin, [own], batch[0])
    moved = twin[5].bias.detach() - model[5].bias.detach()  # at the optimizer's own rate
    gradient = torch.autograd.grad(loss_of(model, batch[0]), model[5].bias)[0]
    unit = -float((gradient * moved).sum()) / own.param_groups[0]["lr"]
    rate = next(p.lr for p in report.recommendation.parameters if p.name == "5.bias")
    assert rate * unit / report.recommendation.master_lr == pytest.approx(1 / 6, rel=1e-9)


@pytest.mark.parametrize(
    ("field", "value"), [("relative_sensitivity", 0.5), ("branches", {"3": ["3"]}), ("refine", 10)]
)
def test_what_does_not_go_with_a_checkpoint_is_named(field, value) -> None:
    model, optimizers = trained("adamw", steps=1)
    with pytest.raises(ValueError, match=f"{field}: does not go with checkpoint"):
        recommend(model, four(), optimizer=optimizers, blocks=BLOCKS, checkpoint=True, **{field: value})


def test_rates_put_to_use_and_taken_up_again(tmp_path) -> None:
    """The way of the documentation: report, groups, the old state, and on."""
    model, optimizers = trained("adamw")
    save_checkpoint(tmp_path / "a.safetensors", model, optimizers)
    report = recommend(model, four(), optimizer=optimizers, blocks=BLOCKS, checkpoint=True)
    again = torch.optim.AdamW(report.param_groups(model), weight_decay=0.02)
    load_checkpoint(tmp_path / "a.safetensors", model, again)
    own = measure(model, four()[:1], optimizer=again, blocks=BLOCKS, learning_rates="optimizer").measurements[0]
    told = report.measurements[0]
    assert own.loss_decay == pytest.approx(report.recommendation.master_lr * told.loss_decay, rel=1e-9)
