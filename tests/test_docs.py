"""The documentation: what it shows is run, what it links to exists, what it lists is complete; no numbers are compared.

Commands meet the real API over HTTP with its real store; in the dispatcher's place, a thread calls the engine.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from featurespeed.contract import (
    Checkpoint,
    Dataset,
    JobRequest,
    LayerMeasurement,
    Measurement,
    ProbeResult,
    Recommendation,
    Refinement,
    parse_request,
)
from featurespeed.contract.properties import LayerStability, StabilityMeasurement, StateProperties
from featurespeed_service.settings import PREFIX, Settings
from featurespeed_service.store.datasets import FileKind
from featurespeed_workers.local import answer
from tests.client.live import LiveService, live_service

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
WRITTEN_FOR = "http://localhost:8000"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = [sys.executable, "-W", "error", "-W", "ignore:`torch.jit.script`:DeprecationWarning"]
"""Warnings are errors; but torch's own forward-mode rules are scripted, see pyproject.toml."""
LIGHTNING = [
    "-W",
    "ignore:`isinstance(treespec:FutureWarning",
    "-W",
    "ignore:The 'train_dataloader' does not have many",
]
"""What Lightning says of torch 2.13, and of data loaders without workers."""
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}:{self.language}"


def blocks(page: str, *languages: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found = [Block(page, text[: m.start()].count("\n") + 1, m[1], m[2]) for m in BLOCK.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def is_make(block: Block) -> bool:
    return block.language == "sh" and all(line.startswith("make ") for line in block.text.splitlines())


README = [block for block in blocks("README.md", "sh", "python") if not is_make(block)]
HOW_TO = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/howto/*.md"))
MAKE = [block for page in PAGES for block in blocks(str(page.relative_to(ROOT)), "sh") if is_make(block)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with the examples in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("service")) as service:
        stop, failures = threading.Event(), []
        worker = threading.Thread(target=_work, args=(service, stop, failures))
        worker.start()
        yield service.url
        stop.set()
        worker.join(60)
        assert failures == []


@contextmanager
def _file(service: LiveService, kind: FileKind, named: Dataset | Checkpoint | None) -> Iterator[Path | None]:
    """What a request names, as a file."""
    if named is None:
        yield None
        return
    store = service.store.datasets.of_kind(kind)
    stored = store.find(named.sha256)
    assert stored is not None
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(store.read(stored))
        file.flush()
        yield Path(file.name)


def _work(service: LiveService, stop: threading.Event, failures: list[Exception]) -> None:
    try:
        while not stop.wait(0.02):
            service.store.beat("docs")
            if (claim := service.store.claim("docs")) is None:
                continue
            request = claim.job.request
            data = request.data if isinstance(request.data, Dataset) else None
            with _file(service, "dataset", data) as dataset, _file(service, "checkpoint", request.checkpoint) as saved:
                report = answer(request, dataset=dataset, checkpoint=saved, threads=1)
            service.store.succeed(claim.lease, report.model_dump_json())
    except Exception as error:
        failures.append(error)


def run(command: list[str], text: str, folder: Path) -> str:
    """Standard output of an interpreter that is given ``text``; it must succeed, and complain of nothing."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**clean, "PATH": path, "FEATURESPEED_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, input=text, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "error" not in done.stderr.lower(), done.stderr
    return done.stdout


def run_block(block: Block, address: str, folder: Path) -> str:
    command = ["bash", "-euo", "pipefail", "-s"] if block.language == "sh" else [*PYTHON, "-"]
    return run(command, block.text.replace(WRITTEN_FOR, address), folder)


@pytest.mark.parametrize("block", README, ids=str)
def test_readme_runs(block: Block, address: str, folder: Path) -> None:
    run_block(block, address, folder)
    for written in folder.glob("*.json"):  # a report each
        assert json.loads(written.read_text())["measurements"]


def test_http_page_runs(address: str, folder: Path) -> None:
    """All commands of the page in one shell: later ones use what earlier ones have set."""
    script = "".join(block.text for block in blocks("docs/http.md", "sh"))
    out = run_block(Block("docs/http.md", 1, "sh", script), address, folder)
    for expected in (
        "HTTP/1.1 202 Accepted",
        '"status":"succeeded"',
        "event: status",
        '"kind":"dataset"',
        '"checkpoint":{"sha256":"',
        "urn:featurespeed:problem:invalid-spec",
    ):
        assert expected in out


@pytest.mark.parametrize("block", blocks("docs/monitor.md", "python"), ids=str)
def test_monitor_page_runs(block: Block, folder: Path) -> None:
    run([*PYTHON, *LIGHTNING, "-"], block.text, folder)
    for written in folder.glob("*.jsonl"):
        records = [json.loads(line) for line in written.read_text().splitlines()]
        assert [(record["step"], record["error"]) for record in records] == [(0, None), (5, None)]


SCRIPTS = [page for page in ("docs/tutorial.md", *HOW_TO) if blocks(page, "sh", "python")]


@pytest.mark.parametrize("page", SCRIPTS)
def test_page_runs_from_top_to_bottom(page: str, address: str, folder: Path) -> None:
    """All commands and all Python of a page, in one interpreter: later ones use what earlier ones have made."""
    shell = "__import__('subprocess').run(['bash', '-euo', 'pipefail', '-c', {!r}], check=True)"
    parts = [block for block in blocks(page, "sh", "python") if not is_make(block)]
    text = "\n".join(block.text if block.language == "python" else shell.format(block.text) for block in parts)
    out = run_block(Block(page, 1, "python", text), address, folder)
    if found := re.search(r"loss recommended (\S+), default (\S+)", out):  # what the tutorial promises
        assert float(found[1]) < 0.1 * float(found[2])
    assert bool(found) == (page == "docs/tutorial.md")


@pytest.mark.parametrize("block", blocks("docs/howto/families.md", "yaml"), ids=str)
def test_families_are_spelled_rightly(block: Block) -> None:
    request = parse_request(yaml.safe_load(block.text) | {"kind": "recommend", "optimizer": {"name": "adamw"}})
    assert request.architecture.family in (ROOT / block.page).read_text()


def test_every_family_is_explained() -> None:
    explained = {
        yaml.safe_load(block.text)["architecture"]["family"] for block in blocks("docs/howto/families.md", "yaml")
    }
    schemas = JobRequest.model_json_schema()["$defs"].values()
    assert explained == {
        part["properties"]["family"]["const"] for part in schemas if "family" in part.get("properties", {})
    }


def test_http_page_shows_json() -> None:
    for block in blocks("docs/http.md", "json"):
        json.loads(block.text)


@pytest.mark.parametrize("block", MAKE, ids=str)
def test_make_targets_exist(block: Block) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[1] for line in block.text.splitlines()} <= set(targets)


def test_own_module_learns(folder: Path) -> None:
    out = run([*PYTHON, "examples/own_module.py"], "", folder)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", out)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in _anchors(target), f"{page.name}: {link}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_setting_is_listed() -> None:
    listed = set(re.findall(rf"^\| `({PREFIX}[A-Z_]+)`", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert listed == {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


def test_every_quantity_is_explained() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    explained = set(re.findall(r"`(\w+)`", " ".join(rows)))
    measured = set(LayerMeasurement.model_fields) - {"index", "name", "size"}
    recommended = {"master_lr", "relative_sensitivity", "feature_step", "refinement", "warmup_fraction"}
    assert recommended <= set(Recommendation.model_fields)
    assert {"loss_decay", "formula_residual"} <= set(Measurement.model_fields)
    stable = (set(LayerStability.model_fields) | set(StabilityMeasurement.model_fields)) - {"index", "name", "layers"}
    judged = set(StateProperties.model_fields)
    assert measured | recommended | stable | judged | {"loss_decay", "formula_residual"} <= explained


def test_every_field_of_a_refinement_is_explained() -> None:
    [row] = re.findall(r"^\| `refinement` \|.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    fields = set(Refinement.model_fields) | set(ProbeResult.model_fields)
    assert "late_log_loss" in fields
    assert fields <= set(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/science.md"])
def test_files_that_are_named_exist(page: str) -> None:
    """Every ``name.py`` in backquotes is a file of the packages or of the tests, at the end of whose path it stands."""
    paths = [f"/{path.relative_to(ROOT)}" for path in ROOT.glob("[cdwst]*/**/*.py")]
    for named in re.findall(r"`([\w./]+\.py)`", (ROOT / page).read_text()):
        assert any(path.endswith(f"/{named}") for path in paths), named


def test_security_names_what_there_is() -> None:
    """Every path, and every ``path::test``, in SECURITY.md."""
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())
    assert len({path for path, test in named if test}) > 5
    for path, test in named:
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"
