"""The quality benchmark itself: every contender on a short cell, and the arithmetic of its figures of merit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.quality import figures_of_merit, report, results, runs, sweep
from benchmarks.quality.contenders import CONTENDERS, OURS, REFINED, SWEEP
from benchmarks.quality.drawing import draw
from benchmarks.quality.suite import NETS, Cell, cells
from benchmarks.quality.work import counted, step_work, sweep_work

SHORT = Cell("digits-mlp3-sgd", "digits-mlp3", "sgd", "fit", steps=12)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_runs(name: str) -> None:
    found = CONTENDERS[name](SHORT)
    assert [run["seed"] for run in found["runs"]] == [100, 101, 102]
    assert all(math.isfinite(run["mean_log_loss"]) for run in found["runs"])
    if name not in ("LR finder", "Prodigy"):  # twelve steps are too few for what they choose
        assert all(run["final_loss"] < 2.0 and not run["diverged"] for run in found["runs"])  # chance is log 10 = 2.3
    if name != SWEEP:
        assert 0 <= found["cost"] < (1 if name != REFINED else 2)  # five probes of 50 steps beside 24 runs of 12
    json.dumps(found)


def test_the_halves_are_even_and_every_network_is_in_both() -> None:
    everything = list(cells())
    assert len(everything) == 2 * len(NETS) >= 20
    assert sum(c.half == "fit" for c in everything) == len(NETS)
    for net in NETS:
        assert {c.half for c in everything if c.net == net} == {"fit", "held-out"}


def test_a_run_is_a_plain_training_loop() -> None:
    """Against a loop written out: the same losses to the bit, hence the same mean log-loss."""
    model, expected = runs.fresh(SHORT, 100), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(12):
        inputs, targets = runs.source(SHORT).batch(100, step)
        for group in optimizer.param_groups:  # one step of warm-up, then a cosine over the eleven that are left
            group["lr"] = 0.1 * (1.0 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 11)))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        expected.append(math.log(loss.item()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    fresh = runs.fresh(SHORT, 100)
    found = runs.train(SHORT, fresh, runs.make_optimizer(SHORT, fresh.parameters(), 0.1), 100)
    assert found.mean_log_loss == pytest.approx(sum(expected) / 12, rel=1e-6)


def test_outcomes_of_known_losses() -> None:
    steady = runs.outcome(0, [math.e] * 40, 40)
    assert (steady.mean_log_loss, steady.final_loss, steady.diverged) == (1.0, pytest.approx(math.e), False)
    assert steady.curve == pytest.approx([1.0] * 20)
    broken = runs.outcome(0, [1.0, math.e**2, math.inf], 40)  # the rest counts as the worst loss that there was
    assert broken.diverged
    assert broken.mean_log_loss == pytest.approx((0 + 39 * 2) / 40)
    assert runs.outcome(0, [1.0] * 20 + [1.6] * 20, 40).diverged
    assert not runs.outcome(0, [1.0] * 20 + [1.4] * 20, 40).diverged
    assert runs.outcome(0, [0.0] * 40, 40).mean_log_loss == pytest.approx(math.log(runs.FLOOR))


def test_a_grid_goes_on_where_its_best_is_at_the_end() -> None:
    def at(*losses: float) -> dict[int, runs.Outcome]:
        return {k: runs.outcome(0, [x] * 20, 20) for k, x in enumerate(losses)}

    assert sweep._beyond(at(3, 2, 1), {0, 1, 2}) == 3
    assert sweep._beyond(at(1, 2, 3), {0, 1, 2}) == -1
    assert sweep._beyond(at(2, 1, 3), {0, 1, 2}) is None
    assert sweep._beyond(at(3, 2), {0, 1, 2}) is None  # the last one diverged: no use going on


def test_he_is_kaiming_and_repeats() -> None:
    one, two = (runs.fresh(SHORT, 100) for _ in range(2))
    sweep.he(one, 5)
    torch.manual_seed(1)
    sweep.he(two, 5)
    for name, p in one.named_parameters():
        assert torch.equal(p, dict(two.named_parameters())[name])
        assert p.std().item() == pytest.approx(math.sqrt(2 / p.shape[1]), rel=0.1)


def test_work_is_counted_as_by_hand() -> None:
    """A product of (128, n) and (n, k) takes 2·128·n·k; backward two of them, but for the input's gradient."""
    products = [64 * 128, 128 * 128, 128 * 10]
    assert step_work(SHORT) == 2 * 128 * (3 * sum(products) - products[0])
    assert sweep_work(SHORT) == 24 * 12 * step_work(SHORT)
    x = torch.randn(3, 5, requires_grad=True)
    assert counted(lambda: x @ torch.ones(5, 7))[1] == 2 * 3 * 5 * 7


def test_scores_and_tables(tmp_path: Path) -> None:
    cell = next(cells())

    def result(*logs: float, final: float = 0.5) -> dict[str, object]:
        run = {"final_loss": final, "diverged": False}
        return {"runs": [{"seed": 100 + i, "mean_log_loss": x, **run} for i, x in enumerate(logs)], "cost": 0.05}

    assert figures_of_merit.score(cell, OURS) is None
    results.save(cell, SWEEP, result(-1.0, -2.0, -3.0))
    results.save(cell, OURS, result(-1.2, -2.2, -2.9, final=0.25))
    found = figures_of_merit.score(cell, OURS)
    assert found is not None
    assert found.regret == pytest.approx(-0.1)
    assert found.error == pytest.approx(math.sqrt((2 * 0.1**2 + 0.2**2) / 2 / 3))
    assert (found.loss_ratio, found.cost, found.diverged) == (pytest.approx(0.5), 0.05, 0)
    text = report.whole([cell])
    assert f"| {cell.name} | fit | -0.10 ± 0.10 |" in text
    draw(report.scores([cell]), [cell], tmp_path / "regret.png")
    assert (tmp_path / "regret.png").stat().st_size > 10_000


def test_the_interval_is_that_of_the_mean_for_many_cells() -> None:
    values = [float(x) for x in torch.randn(400, generator=torch.Generator().manual_seed(0))]
    low, high = figures_of_merit.interval(values, lambda row: row.mean())
    half = 1.96 * torch.tensor(values).std().item() / math.sqrt(400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert figures_of_merit.interval(values[:20]) == figures_of_merit.interval(values[:20])


def test_results_answer_one_question_only(folder: Path) -> None:
    results.save(SHORT, OURS, {"runs": []})
    assert results.load(SHORT, OURS) is not None
    assert results.load(Cell(SHORT.name, SHORT.net, SHORT.optimizer, "fit", steps=13), OURS) is None
    (folder / SHORT.name / f"{OURS}.part").write_text("{half")  # what an interruption leaves
    assert results.load(SHORT, OURS) is not None
