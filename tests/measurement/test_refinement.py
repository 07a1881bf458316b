"""Which factor the probes choose: known numbers; and what a probe is: torch's own training from the closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featurespeed.contract import Refine, Report, SpecError, parse_request
from featurespeed_workers import recommend, stages
from featurespeed_workers.balance import rate_of
from featurespeed_workers.cells import run_cell
from featurespeed_workers.data import load
from featurespeed_workers.listening import ignore
from featurespeed_workers.local import answer
from featurespeed_workers.probes import FIRST_STEP, rescaled, run_probe_cell
from featurespeed_workers.refinement import (
    LOSS_FLOOR,
    Candidate,
    Probe,
    candidates,
    choose,
    has_diverged,
    lowest_point,
    result,
)
from featurespeed_workers.starts import start, unscaled
from featurespeed_workers.training import Schedule

FACTORS = (0.25, 1.0, 2.0)
TRIED = candidates(Refine(steps=5, factors=FACTORS))
CPU = torch.device("cpu")


def probe(factor: float, mean: float | None, *, seed: int = 0, first: float = 2.0, last: float = 1.0) -> Probe:
    return Probe(
        candidate=Candidate(factor=factor),
        seed=seed,
        steps=5 if mean is not None else 2,
        first=first,
        last=last if mean is not None else None,
        mean_log_loss=mean,
    )


def test_the_losses_of_a_probe() -> None:
    found = result(TRIED[0], 3, [2.0, 8.0, 0.0], diverged=False)
    assert (found.steps, found.first, found.last, found.diverged) == (3, 2.0, 0.0, False)
    assert found.mean_log_loss == pytest.approx((math.log(16) + math.log(LOSS_FLOOR)) / 3)
    stopped = result(TRIED[0], 3, [2.0, 80.0], diverged=True)
    assert (stopped.steps, stopped.mean_log_loss, stopped.last, stopped.diverged) == (2, None, None, True)


def test_when_a_run_is_stopped() -> None:
    assert not has_diverged(199.0, 2.0)
    assert all(has_diverged(loss, 2.0) for loss in (201.0, math.inf, math.nan))
    assert not has_diverged(99 * LOSS_FLOOR, 0.0)


@pytest.mark.parametrize("lowest", [0.3, 0.6, 1.0, 1.2, 1.4])
def test_the_parabola_finds_the_lowest_point_of_a_parabola(lowest: float) -> None:
    """Factors are spaced unevenly; x is the logarithm."""
    means = [0.7 * math.log(f / lowest) ** 2 - 3 for f in FACTORS]
    chosen = choose(TRIED, [probe(f, m) for f, m in zip(FACTORS, means, strict=True)])
    if min(means) == means[1]:
        assert chosen.factor == pytest.approx(lowest)
    else:  # at the edge there is no parabola
        assert chosen.factor == chosen.best.factor == 0.25
    assert (chosen.fallback, chosen.warning) == (None, None)


def test_the_lowest_point_stays_between_its_neighbours() -> None:
    assert lowest_point((0, 1.0), (1, 1.0), (2, 1.0)) == 1
    assert lowest_point((0, 1.0), (1, 0.0), (2, 0.0)) == 1.5
    assert 0 <= lowest_point((0, 0.0), (1, 0.0), (10, 1.0)) <= 10


def test_one_factor_for_all_seeds_and_a_divergent_seed_disqualifies() -> None:
    means = {0: (-1.0, -2.0, None), 1: (-1.0, -2.0, -9.0), 2: (-1.0, -1.1, -9.0)}
    probes = [probe(f, m, seed=s) for s, row in means.items() for f, m in zip(FACTORS, row, strict=True)]
    chosen = choose(TRIED, probes)
    assert chosen.factor == 1.0  # a neighbour is missing: no parabola
    probes = [p.model_copy(update={"mean_log_loss": -9.0, "last": 1.0}) if p.diverged else p for p in probes]
    assert choose(TRIED, probes).factor == 2.0


def test_equal_scores_prefer_the_closed_form() -> None:
    assert choose(TRIED, [probe(f, -1.0) for f in FACTORS]).factor == 1.0


@pytest.mark.parametrize(
    ("change", "fallback", "factor", "why"),
    [
        ({"mean_log_loss": None, "last": None}, "smallest_factor", 0.25, "every probe diverged"),
        ({"mean_log_loss": None, "last": None, "first": None}, "smallest_factor", 0.25, "every probe diverged"),
        ({"last": 2.5}, "smallest_factor", 0.25, "the loss rises in every probe"),
        ({"first": 1e-5, "last": 1e-6}, "closed_form", 1.0, "at its floor"),
        ({"last": 2.0}, "closed_form", 1.0, "changes in no probe"),
    ],
)
def test_where_probes_do_not_tell(change: dict[str, Any], fallback: str, factor: float, why: str) -> None:
    chosen = choose(TRIED, [probe(f, -f).model_copy(update=change) for f in FACTORS])
    assert (chosen.fallback, chosen.factor) == (fallback, factor)
    assert why in chosen.warning


MLP = {"family": "mlp", "input_dim": 64, "width": 32, "depth": 3, "output_dim": 10, "bias": True}


def spec(refine: dict[str, Any] | None = None, **scaling: Any) -> dict[str, Any]:
    return {
        "kind": "recommend",
        "architecture": MLP,
        "data": {"kind": "digits", "batch_size": 64},
        "loss": "cross_entropy",
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "scaling": {**scaling, **({"refine": refine} if refine else {})},
        "measurement": {"seeds": [0, 3], "dtype": "float64"},
    }


@pytest.mark.parametrize("granularity", ["block", "tensor"])
def test_a_probe_is_torch_s_own_training_from_the_closed_form(granularity: str) -> None:
    """Against a loop by hand on the module, whose weights are those that the closed form itself found."""
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
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(steps).factor)
    losses = []
    for step in range(steps):
        inputs, labels = source.batch(3, FIRST_STEP + step % (steps - 1))
        loss = F.cross_entropy(module(inputs), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert found.mean_log_loss == pytest.approx(sum(map(math.log, losses)) / steps, rel=1e-6)
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
    refined = answer(parse_request(spec({"steps": 20, "factors": [0.125, 0.25, 8.0]}, **asked)))
    found = refined.recommendation.refinement
    assert found.asked_feature_step == 0.8
    assert refined.recommendation.feature_step == 0.8 * found.factor
    assert [p.factor for p in found.probes] == [0.125, 0.25, 8.0]
    assert found.total_steps == sum(sum(p.steps) for p in found.probes)
    assert sum(p.chosen for p in found.probes) == 1
    direct = answer(parse_request(spec(**{**asked, "feature_step": 0.8 * found.factor})))
    assert direct.recommendation.refinement is None
    assert numbers(refined) == pytest.approx(numbers(direct), rel=1e-12)
    assert refined.measurements == direct.measurements


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
    report = answer(parse_request(spec({"steps": 30, "factors": [4.0, 8.0]}, feature_step=500.0)))
    found = report.recommendation.refinement
    assert [p.diverged for p in found.probes] == [(True, True)] * 2
    assert all(steps < 30 for p in found.probes for steps in p.steps)
    assert (found.fallback, found.factor) == ("smallest_factor", 4.0)
    assert [p.score for p in found.probes] == [None, None]
    assert any("every probe diverged" in warning for warning in report.warnings)


def test_training_that_is_measured_is_said_to_be_before_refinement() -> None:
    document = spec({"steps": 5, "factors": [0.25, 0.5]})
    document["measurement"] |= {"steps": 2, "every": 2}
    report = answer(parse_request(document))
    assert [m.step for m in report.measurements] == [0, 2]
    assert any("along training are at κ 1 as asked" in warning for warning in report.warnings)


def test_cells_come_when_their_inputs_are_done() -> None:
    request = parse_request(spec({"steps": 5, "factors": [1, 2]}))
    assert stages.next_cells(request, ()) == ["seed 0", "seed 3"]
    assert stages.next_cells(request, ["seed 3"]) == ["seed 0", "probe 1 seed 3", "probe 2 seed 3"]
    assert stages.inputs_of(request, "probe 2 seed 3") == ("seed 3",)
    assert len(stages.plan(request)) == request.cells_total == 6
    assert stages.next_cells(request, stages.plan(request)) == []


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
    assert [p.steps for p in first.refinement.probes] == [(9,), (9,)]
    plain = recommend(module, own_batches(0), loss="mse").recommendation
    assert [b.lr / c.lr for b, c in zip(first.blocks, plain.blocks, strict=True)] == pytest.approx(
        [first.refinement.factor] * 2
    )


def test_what_refine_cannot_do_with_own_modules() -> None:
    module = own_model(0)
    with pytest.raises(ValueError, match="refine: Input should be greater than or equal to 5, got 2"):
        recommend(module, own_batches(0), loss="mse", refine=2)
    with pytest.raises(ValueError, match="refine: needs the optimizer by its name"):
        recommend(module, own_batches(0), loss="mse", refine=9, optimizer=torch.optim.SGD(module.parameters()))


@pytest.mark.parametrize(
    ("refine", "other", "field", "bound"),
    [
        ({"steps": 4}, {}, "scaling.refine.steps", "greater than or equal to 5"),
        ({"steps": 10_001}, {}, "scaling.refine.steps", "less than or equal to 10000"),
        ({"steps": 5, "factors": [1]}, {}, "scaling.refine.factors", "at least 2"),
        ({"steps": 5, "factors": [0.125, 0.25, 0.5, 1, 2, 3, 4, 8]}, {}, "scaling.refine.factors", "at most 7"),
        ({"steps": 5, "factors": [1, 9]}, {}, "scaling.refine.factors.1", "less than or equal to 8"),
        ({"steps": 5, "factors": [0.1, 1]}, {}, "scaling.refine.factors.0", "greater than or equal to 0.125"),
        ({"steps": 5, "factors": [2, 1]}, {}, "scaling.refine.factors", "must rise"),
        ({"steps": 5, "factors": [1, 1]}, {}, "scaling.refine.factors", "must rise"),
        ({"steps": 5}, {"kind": "measure"}, "scaling.refine", "not 'measure' with 'pytorch_default'"),
        ({"steps": 5}, {"rule": "ntk"}, "scaling.refine", "not 'recommend' with 'ntk'"),
    ],
)
def test_bad_input(refine: dict[str, Any], other: dict[str, Any], field: str, bound: str) -> None:
    rule = {"rule": other["rule"]} if "rule" in other else {}
    document = spec(refine, **rule) | {k: v for k, v in other.items() if k == "kind"}
    with pytest.raises(SpecError) as caught:
        parse_request(document)
    [error] = caught.value.errors
    assert error.field == field
    assert bound in error.bound
