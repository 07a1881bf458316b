"""Long proofs of what the service promises: short by default, in full with ``--full`` (``make chaos``)."""

import pytest

from tests.chaos.report import Report


@pytest.fixture(scope="session")
def full(pytestconfig):
    """Whether the promised numbers are run, not a sample."""
    return pytestconfig.getoption("full")


@pytest.fixture(scope="session")
def report():
    """Rows of what was measured: printed as they come, and all together in the end."""
    report = Report()
    yield report
    report.end()
