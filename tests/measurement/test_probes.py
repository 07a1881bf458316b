"""What a probe is: torch's own training from the closed form; and what becomes of the answer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featurespeed.contract import Refine, Report, parse_request
from featurespeed_workers import recommend
from featurespeed_workers.balance import rate_of
from featurespeed_workers.cells import run_cell
from featurespeed_workers.data import load
from featurespeed_workers.listening import ignore
from featurespeed_workers.local import answer
from featurespeed_workers.probes import FIRST_STEP, rescaled, run_probe_cell
from featurespeed_workers.refinement import MARGIN, Candidate
from featurespeed_workers.starts import start, unscaled
from featurespeed_workers.training import Schedule
from tests.measurement.refining import spec

CPU = torch.device("cpu")


@pytest.mark.parametrize("granularity", ["block", "tensor"])
def test_a_probe_is_torch_s_own_training_from_the_closed_form(granularity: str) -> None:
    """Against a loop by hand on the module, whose weights are those that the closed form itself found.

    The schedule is that of a training 4 times as long, so that the rates are still high at the end.
    """
    steps, factor = 12, 2.0
    request = parse_request(spec({"steps": steps}, granularity=granularity))
    cell = run_cell(request, 3)
    found = run_probe_cell(request, Candidate(factor=factor), cell)

    source = load(request, dataset=None, dtype=torch.float64, device=CPU)
    begun = start(request, 3, source, CPU, ignore)
    module = begun.setting.network.module
    module.load_state_dict(begun.scaling.parameters)
    groups = [
        {"params": [p], "lr": cell.scaling.master_lr * factor * rate_of(begun.scaling.rates, name.split(".")[0], name)}
        for name, p in module.named_parameters()
    ]
    assert len({group["lr"] for group in groups}) == {"block": 3, "tensor": 6}[granularity]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(4 * steps).factor)
    losses = []
    for step in range(steps):
        inputs, labels = source.batch(3, FIRST_STEP + step % (steps - 1))
        loss = F.cross_entropy(module(inputs), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    logs = [math.log(loss) for loss in losses]
    assert found.mean_log_loss == pytest.approx(sum(logs) / steps, rel=1e-6)
    assert found.late_log_loss == pytest.approx(sum(logs[-3:]) / 3, rel=1e-6)
    assert (found.first, found.last) == pytest.approx((losses[0], losses[-1]), rel=1e-6)


def test_the_closed_form_s_weights_come_back_from_its_numbers() -> None:
    request = parse_request(spec({"steps": 5}))
    begun = start(request, 0, load(request, dataset=None, dtype=torch.float64, device=CPU), CPU, ignore)
    base = dict(unscaled(request, 0, CPU).network.module.named_parameters())
    again = rescaled(base, run_cell(request, 0).scaling)
    changed = 0
    for name, expected in begun.scaling.parameters.items():
        torch.testing.assert_close(again[name], expected, rtol=1e-12, atol=0)
        changed += not torch.equal(base[name], expected)
    assert changed == 3  # the matrices; biases are 0


def numbers(report: Report) -> list[float]:
    advice = report.recommendation
    return [
        *(x for block in advice.blocks for x in (block.init_std, block.lr, *block.lr_over_seeds.values)),
        *(x for parameter in advice.parameters for x in (parameter.init_std, parameter.lr)),
        advice.master_lr, *advice.master_lr_over_seeds.values, advice.feature_step, advice.relative_sensitivity,
    ]  # fmt: skip


@pytest.mark.parametrize("granularity", ["block", "tensor", "group"])
def test_the_refined_answer_is_the_closed_form_at_the_refined_feature_step(granularity: str) -> None:
    asked = {"feature_step": 0.8, "granularity": granularity}
    refined = answer(parse_request(spec({"steps": 20, "factors": [0.25, 8.0]}, **asked)))
    found = refined.recommendation.refinement
    assert found.asked_feature_step == pytest.approx(0.8, rel=1e-12)
    assert refined.recommendation.feature_step == pytest.approx(0.8 * found.factor, rel=1e-12)
    assert found.total_steps == sum(sum(p.steps) for p in found.probes)
    assert sum(p.chosen for p in found.probes) == 1
    direct = answer(parse_request(spec(**{**asked, "feature_step": 0.8 * found.factor})))
    assert direct.recommendation.refinement is None
    assert numbers(refined) == pytest.approx(numbers(direct), rel=1e-12)
    assert refined.measurements == direct.measurements


def test_the_second_round_follows_the_first() -> None:
    """κ 0.01 is far too small, and 8 times as much is better: the probes go up from there."""
    found = answer(parse_request(spec({"steps": 20, "factors": [0.5, 2.0]}, feature_step=0.01))).recommendation
    probes = found.refinement.probes
    assert [p.factor for p in probes] == [0.5, 2.0, 8.0, 32.0]
    scores = [p.score for p in probes]
    assert scores == sorted(scores, reverse=True)
    assert [p.chosen for p in probes] == [False, False, False, True]
    assert [p.feature_step for p in probes] == pytest.approx([0.005, 0.02, 0.08, 0.32], rel=1e-9)
    assert (found.refinement.factor, found.refinement.total_steps) == (32.0, 80)


def test_probes_under_one_seed_or_more() -> None:
    """Unless asked for more, the first seed's alone; all seeds' rates are multiplied by what it chooses."""
    options = {"steps": 10, "factors": [1.0, 2.0]}
    one, two, many = (
        answer(parse_request(spec(options | seeds))).recommendation.refinement
        for seeds in ({}, {"seeds": 2}, {"seeds": 9})
    )
    assert two == many  # there are two seeds
    assert (one.total_steps, two.total_steps) == (40, 80)
    assert all(len(p.mean_log_loss) == len(p.late_log_loss) == len(p.steps) == len(p.diverged) == 1 for p in one.probes)
    for p in two.probes:
        halves = [(whole + late) / 2 for whole, late in zip(p.mean_log_loss, p.late_log_loss, strict=True)]
        assert p.score == pytest.approx(sum(halves) / 2, rel=1e-12)
        assert halves[0] != halves[1]
    both = {p.factor: p for p in two.probes}
    for factor in options["factors"]:
        [alone] = [p for p in one.probes if p.factor == factor]
        assert both[factor].mean_log_loss[:1] == alone.mean_log_loss
        assert both[factor].late_log_loss[:1] == alone.late_log_loss


def test_the_closed_form_may_have_taken_less_than_the_default() -> None:
    """Under mse κ is bounded by the loss; probes go from what the rule took."""
    mse = {"loss": "mse"}
    plain = answer(parse_request(spec() | mse)).recommendation
    refined = answer(parse_request(spec({"steps": 10, "factors": [0.5, 1.0]}) | mse)).recommendation
    assert plain.feature_step < parse_request(spec() | mse).feature_step
    assert refined.refinement.asked_feature_step == plain.feature_step
    assert refined.feature_step == plain.feature_step * refined.refinement.factor
    assert {p.factor: p.feature_step for p in refined.refinement.probes}[0.5] == plain.feature_step / 2


def test_probes_of_a_network_whose_branch_scale_was_searched_for() -> None:
    """They train the network with the β that was found."""
    resnet = {"family": "resnet", "input_dim": 64, "width": 16, "depth": 4, "output_dim": 10}
    document = spec({"steps": 6})
    searched = answer(parse_request(document | {"architecture": {**resnet, "branch_scale": {"target_angle": 1.13}}}))
    beta = searched.branch_scale.beta
    given = answer(parse_request(document | {"architecture": {**resnet, "branch_scale": beta}}))
    assert beta != 1
    assert searched.recommendation.refinement == given.recommendation.refinement


def test_probes_that_diverge_are_data() -> None:
    report = answer(parse_request(spec({"steps": 30, "factors": [4.0, 8.0], "seeds": 2}, feature_step=900.0)))
    found = report.recommendation.refinement
    assert [p.factor for p in found.probes] == [1.0, 2.0, 4.0, 8.0]
    assert [p.diverged for p in found.probes] == [(True, True)] * 4
    assert all(steps < 30 for p in found.probes for steps in p.steps)
    assert (found.fallback, found.factor) == ("smallest_factor", 1 / MARGIN)
    assert [p.score for p in found.probes] == [None] * 4
    assert any("every probe diverged" in warning for warning in report.warnings)


def test_training_that_is_measured_is_said_to_be_before_refinement() -> None:
    document = spec({"steps": 5, "factors": [0.25, 0.5]})
    document["measurement"] |= {"steps": 2, "every": 2}
    report = answer(parse_request(document))
    assert [m.step for m in report.measurements] == [0, 2]
    assert report.recommendation.refinement.factor != 1
    assert any("along training are at the closed form's κ 2, not" in warning for warning in report.warnings)


def own_batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(x, x[:, :2] * 3) for x in torch.randn(6, 16, 8, generator=generator)]


def own_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 2))


def test_a_module_of_one_s_own_is_refined_and_left_as_it_was() -> None:
    module, before = own_model(0), own_model(0).state_dict()
    state = torch.get_rng_state()
    reports = [recommend(module, own_batches(0), loss="mse", refine=Refine(steps=9, factors=(0.5, 2))) for _ in "ab"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    first, second = (report.recommendation for report in reports)
    assert first == second
    assert [p.steps for p in first.refinement.probes] == [(9,)] * 4
    plain = recommend(module, own_batches(0), loss="mse").recommendation
    assert [b.lr / c.lr for b, c in zip(first.blocks, plain.blocks, strict=True)] == pytest.approx(
        [first.refinement.factor] * 2
    )


def test_only_the_seeds_that_are_probed_take_batches_for_it() -> None:
    taken = dict.fromkeys((0, 1, 2), 0)

    def batches(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            taken[seed] += 1
            yield own_batches(seed)[taken[seed] % 6]

    refine = Refine(steps=9, factors=(0.5, 2), seeds=2)
    found = recommend(own_model, batches, loss="mse", refine=refine, seeds=(0, 1, 2)).recommendation
    assert taken == {0: 4 + 8, 1: 4 + 8, 2: 4}
    assert all(p.steps == (9, 9) for p in found.refinement.probes)


def test_what_refine_cannot_do_with_own_modules() -> None:
    module = own_model(0)
    with pytest.raises(ValueError, match="refine: Input should be greater than or equal to 5, got 2"):
        recommend(module, own_batches(0), loss="mse", refine=2)
    with pytest.raises(ValueError, match="refine: needs the optimizer by its name"):
        recommend(module, own_batches(0), loss="mse", refine=9, optimizer=torch.optim.SGD(module.parameters()))
