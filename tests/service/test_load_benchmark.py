"""The load benchmark measures what it says: that it runs at all, not how fast."""

from benchmarks.load.__main__ import submissions


def test_all_jobs_that_are_counted_were_accepted():
    row = submissions("sqlite", clients=2, seconds=1, dispatcher=False)
    assert "failed" not in row.measured
    assert float(row.measured.partition("/s")[0]) > 0
