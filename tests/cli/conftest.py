import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.live import LiveService, live_service
from tests.client.reports import SPEC_WITHOUT_KIND


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A file with a specification that has no kind."""
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC_WITHOUT_KIND))
    return path
