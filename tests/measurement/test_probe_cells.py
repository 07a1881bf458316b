"""The cells of a job with probes: how many there are, and which wait for which."""

from __future__ import annotations

from typing import Any

import pytest

from featurespeed.contract import parse_request
from featurespeed_workers import stages
from tests.measurement.refining import spec


@pytest.mark.parametrize(
    ("refine", "total"),
    [(None, 3), ({}, 8), ({"seeds": 2}, 13), ({"seeds": 64}, 18), ({"factors": [1, 2], "seeds": 3}, 15)],
)
def test_how_many_cells_there_are(refine: dict[str, Any] | None, total: int) -> None:
    document = spec()
    document["measurement"]["seeds"] = [0, 3, 7]
    document["scaling"]["refine"] = refine
    request = parse_request(document)
    assert len(stages.plan(request)) == request.cells_total == total


def test_cells_come_when_their_inputs_are_done() -> None:
    """Probes when their seed's closed form is, those of the second round when all of the first are."""
    request = parse_request(spec({"steps": 5, "factors": [1, 2]}))
    assert stages.next_cells(request, ()) == ["seed 0", "seed 3"]
    assert stages.next_cells(request, ["seed 3"]) == ["seed 0"]  # only the first seed has probes
    done = ["seed 0"]
    assert stages.next_cells(request, done) == ["seed 3", "probe 1 seed 0", "probe 2 seed 0"]
    done += ["probe 2 seed 0", "seed 3"]
    assert stages.next_cells(request, done) == ["probe 1 seed 0"]
    done += ["probe 1 seed 0"]
    assert stages.next_cells(request, done) == ["probe 3 seed 0", "probe 4 seed 0"]
    assert stages.inputs_of(request, "probe 2 seed 0") == ("seed 0",)
    assert stages.inputs_of(request, "probe 3 seed 0") == ("seed 0", "probe 1 seed 0", "probe 2 seed 0")
    assert stages.next_cells(request, stages.plan(request)) == []


def test_the_second_round_waits_for_the_first_one_of_all_seeds() -> None:
    request = parse_request(spec({"steps": 5, "factors": [1, 2], "seeds": 2}))
    first = ["probe 1 seed 0", "probe 1 seed 3", "probe 2 seed 0", "probe 2 seed 3"]
    assert stages.next_cells(request, ["seed 3"]) == ["seed 0", "probe 1 seed 3", "probe 2 seed 3"]
    done = ["seed 0", "seed 3"]
    for key in first:
        assert stages.next_cells(request, done) == first[first.index(key) :]
        done.append(key)
    second = ["probe 3 seed 0", "probe 3 seed 3", "probe 4 seed 0", "probe 4 seed 3"]
    assert stages.next_cells(request, done) == second
    assert stages.inputs_of(request, "probe 4 seed 3") == ("seed 3", *first)
