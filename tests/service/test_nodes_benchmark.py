"""The benchmark of dispatcher and store, in small."""

from benchmarks.nodes.scenarios import HEADER, Scenario, fresh, run


def test_two_dispatchers_share_the_jobs_of_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.nodes.scenarios.LAST_SMALL_SECONDS", 1.5)
    monkeypatch.setattr("benchmarks.nodes.scenarios.SMALL_SECONDS", 0.05)
    settings = fresh(tmp_path / "store", None)
    row = dict(zip(HEADER, run(Scenario("short", 5, 4), settings, dispatchers=2, nodes=8, seconds=2), strict=True))
    assert row["dispatchers"] == "2"
    assert int(row["cells/s (the slots' own)"].split()[0]) > 0
    assert int(row["small jobs done"].split()[2]) == 1
