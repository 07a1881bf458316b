"""Which factors the probes try and choose: known numbers; and what may be asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from featurespeed.contract import Refine, SpecError, parse_request
from featurespeed_workers.refinement import (
    LOSS_FLOOR,
    MARGIN,
    Candidate,
    Choice,
    Probe,
    candidates,
    choose,
    further,
    has_diverged,
    in_order,
    lowest_point,
    result,
    score,
)
from tests.measurement.refining import spec

FACTORS = (0.25, 1.0, 2.0)
TRIED = candidates(Refine(steps=5, factors=FACTORS))


def probe(
    factor: float,
    mean: float | None,
    *,
    late: float | None = None,
    seed: int = 0,
    first: float = 2.0,
    last: float = 1.0,
) -> Probe:
    """One whose last fifth is like all of it, unless ``late`` is given."""
    return Probe(
        candidate=Candidate(factor=factor),
        seed=seed,
        steps=5 if mean is not None else 2,
        first=first,
        last=last if mean is not None else None,
        mean_log_loss=mean,
        late_log_loss=mean if late is None else late,
    )


def test_the_losses_of_a_probe() -> None:
    losses = [math.exp(-n) for n in range(11)]
    found = result(TRIED[0], 3, losses, diverged=False)
    assert (found.steps, found.first, found.last, found.diverged) == (11, 1.0, losses[-1], False)
    log_floor = math.log(LOSS_FLOOR)  # of the last step, exp(-10)
    assert found.mean_log_loss == pytest.approx((-45 + log_floor) / 11)
    assert found.late_log_loss == pytest.approx((-8 - 9 + log_floor) / 3)  # a fifth, rounded up
    stopped = result(TRIED[0], 3, [2.0, 80.0], diverged=True)
    assert (stopped.steps, stopped.last, stopped.diverged) == (2, None, True)
    assert (stopped.mean_log_loss, stopped.late_log_loss) == (None, None)


def test_the_score_is_half_of_the_whole_and_half_of_the_end() -> None:
    assert score([probe(1, -1.0, late=-4.0)]) == -2.5
    assert score([probe(1, -1.0, late=-4.0), probe(1, -2.0, late=0.0, seed=1)]) == -1.75
    assert score([probe(1, -1.0, late=-4.0), probe(1, None, seed=1)]) is None


def test_a_rate_that_is_fast_at_first_loses_to_one_that_ends_lower() -> None:
    fast = [probe(0.25, -2.0, late=-2.2), probe(1, -1.8, late=-3.0), probe(2, -2.3, late=-2.3)]
    assert choose(TRIED, fast).best == Candidate(factor=1)
    assert choose(TRIED, [p.model_copy(update={"late_log_loss": -2.0}) for p in fast]).best == Candidate(factor=2)


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
    assert chosen.best == Candidate(factor=1.0)
    finished = {"mean_log_loss": -9.0, "late_log_loss": -9.0, "last": 1.0}
    probes = [p.model_copy(update=finished) if p.diverged else p for p in probes]
    assert choose(TRIED, probes).factor == 2.0


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((-2.0, -1.0, None, None), 0.5),  # 2 diverged: no more than ⅔ of κ, which ½ is
        ((-1.0, -2.0, None, None), 2 / 3),
        ((0.0, -1.0, 0.0, None), 1.0),  # a parabola's lowest point, below 4/3
        ((0.0, -1.0, -1.0, None), 4 / 3),  # its lowest point is at √2
        ((None, -1.0, 0.0, 0.0), 1.0),  # below the best it is no warning
    ],
)
def test_a_margin_is_kept_to_what_diverged(means: tuple[float | None, ...], expected: float) -> None:
    """A training is longer than a probe."""
    factors = (0.5, 1.0, 2.0, 4.0)
    tried = [Candidate(factor=f) for f in factors]
    assert choose(tried, [probe(f, m) for f, m in zip(factors, means, strict=True)]).factor == pytest.approx(expected)


def test_equal_scores_prefer_the_closed_form() -> None:
    assert choose(TRIED, [probe(f, -1.0) for f in FACTORS]).factor == 1.0


DIVERGED = {"mean_log_loss": None, "late_log_loss": None, "last": None}


@pytest.mark.parametrize(
    ("change", "fallback", "factor", "why"),
    [
        (DIVERGED, "smallest_factor", 0.25 / MARGIN, "every probe diverged"),
        ({**DIVERGED, "first": None}, "smallest_factor", 0.25 / MARGIN, "every probe diverged"),
        ({"last": 2.5}, "smallest_factor", 0.25, "the loss rises in every probe"),
        ({"first": 1e-5, "last": 1e-6}, "closed_form", 1.0, "at its floor"),
        ({"last": 2.0}, "closed_form", 1.0, "changes in no probe"),
    ],
)
def test_where_probes_do_not_tell(change: dict[str, Any], fallback: str, factor: float, why: str) -> None:
    chosen = choose(TRIED, [probe(f, -f).model_copy(update=change) for f in FACTORS])
    assert (chosen.fallback, chosen.factor) == (fallback, factor)
    assert why in chosen.warning


@pytest.mark.parametrize(
    ("factors", "means", "expected"),
    [
        ((0.5, 1, 2), (0, -1, 0), (0.5**0.5, 2**0.5)),  # the middle: on both sides of it
        ((0.5, 1, 2), (-1, 0, 1), (0.25, 0.125)),  # an end: beyond it, at the spacing there
        ((0.5, 1, 2), (1, 0, -1), (4, 8)),
        ((0.25, 1, 2), (0, -1, 0), (0.5, 2**0.5)),
        ((0.25, 1, 2), (-1, 0, 1), (1 / 16, 1 / 64)),
        ((0.25, 1, 2), (1, 0, -1), (4, 8)),
        ((1, 2), (-1, 0), (0.5, 0.25)),
        ((1, 2), (0, -1), (4, 8)),
        ((0.5, 1, 2), (0, -1, None), (0.5**0.5, 2**0.5)),
        ((0.5, 1, 2), (-1, None, None), (0.25, 0.125)),
        ((0.5, 1, 2), (None, None, None), (0.25, 0.125)),
        ((1, 2), (None, None), (0.5, 0.25)),
    ],
)
def test_what_is_tried_next(
    factors: tuple[float, ...], means: tuple[float | None, ...], expected: tuple[float, float]
) -> None:
    found = further(Refine(factors=factors), [probe(f, m) for f, m in zip(factors, means, strict=True)])
    assert [c.factor for c in found] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"last": 2.5}, (0.25, 0.125)),  # it rises: smaller ones
        ({"first": 1e-5, "last": 1e-6}, (0.5**0.5, 2**0.5)),  # at its floor: about the closed form
        ({"last": 2.0}, (0.5**0.5, 2**0.5)),  # unchanged: likewise
    ],
)
def test_what_is_tried_next_where_probes_do_not_tell(change: dict[str, Any], expected: tuple[float, float]) -> None:
    probes = [probe(f, -f).model_copy(update=change) for f in (0.5, 1.0, 2.0)]  # 2 has the lowest score
    assert [c.factor for c in further(Refine(factors=(0.5, 1, 2)), probes)] == pytest.approx(expected)


def test_all_seeds_of_the_first_round_decide_what_is_tried_next() -> None:
    rows = {0: (0.0, -1.0, -1.5), 1: (0.0, -3.0, -0.5)}
    probes = [probe(f, m, seed=s) for s, row in rows.items() for f, m in zip((0.5, 1.0, 2.0), row, strict=True)]
    refine = Refine(factors=(0.5, 1, 2), seeds=2)
    assert further(refine, probes)[1].factor == pytest.approx(2**0.5)
    assert further(refine, probes[:3])[1].factor == 8


def two_rounds(refine: Refine, means: Callable[[float], float]) -> tuple[Sequence[float], Choice]:
    first = candidates(refine)
    probes = [probe(c.factor, means(c.factor)) for c in first]
    second = further(refine, probes)
    tried = in_order([*first, *second])
    return [c.factor for c in tried], choose(tried, [*probes, *(probe(c.factor, means(c.factor)) for c in second)])


@pytest.mark.parametrize("lowest", [0.2, 0.3, 0.6, 1.0, 1.2, 1.6, 3.0, 5.0])
def test_two_rounds_find_the_lowest_point_of_a_parabola(lowest: float) -> None:
    """Up to a factor of 5 away from the closed form, in five probes."""
    tried, chosen = two_rounds(Refine(), lambda f: 0.7 * math.log(f / lowest) ** 2 - 3)
    assert len(tried) == 5
    assert tried == sorted(tried)
    assert chosen.factor == pytest.approx(lowest)


def test_beyond_the_second_round_the_last_factor_is_taken() -> None:
    tried, chosen = two_rounds(Refine(), lambda f: -math.log(f))
    assert tried == [0.5, 1, 2, 4, 8]
    assert (chosen.factor, chosen.warning) == (8, None)


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
        ({"steps": 5, "factors": [1, 1.009]}, {}, "scaling.refine.factors", "by at least 1 %"),
        ({"seeds": 0}, {}, "scaling.refine.seeds", "greater than or equal to 1"),
        ({"seeds": 65}, {}, "scaling.refine.seeds", "less than or equal to 64"),
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
