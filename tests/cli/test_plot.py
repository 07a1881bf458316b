"""``featurespeed plot``, as a user calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from featurespeed.cli.tables import bar, rendered
from tests.cli.command import refused, run
from tests.figures.made_up import curves, report


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deep net.json"
    path.write_text(report(depth=6, steps=(0, 5), evidence=curves(12)).model_dump_json())
    return path


@pytest.mark.parametrize(("ending", "begins"), [("html", b"<!doctype html>"), ("png", b"\x89PNG"), ("SVG", b"<?xml")])
def test_a_report_is_drawn(file: Path, tmp_path: Path, ending: str, begins: bytes) -> None:
    out = tmp_path / f"drawn.{ending}"
    out.write_text("old")
    done = run("plot", file, "--out", out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_bytes().startswith(begins)
    assert not list(tmp_path.glob(".*"))


def test_another_report_is_drawn_beside_it_and_the_first_may_be_piped(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    assert run("plot", "-", "--compare", file, "--out", out, stdin=file.read_text()).returncode == 0
    assert "other: recommended" in out.read_text()


def test_what_is_no_report_is_told(file: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "drawn.html", tmp_path / "folder.html"
    folder.mkdir()
    assert "must end with .html, .png or .svg" in refused(run("plot", file, "--out", tmp_path / "drawn.pdf"))
    assert "No such file" in refused(run("plot", tmp_path / "missing.json", "--out", out))
    assert "Is a directory" in refused(run("plot", file, "--out", folder))
    other = tmp_path / "other.json"
    other.write_text("not JSON")
    assert "must be a report of featurespeed 0.1.0; it: Invalid JSON" in refused(run("plot", other, "--out", out))
    document = json.loads(file.read_text())
    document["provenance"]["featurespeed"] = "0.0.3"
    del document["measurements"][1]["method"], document["recommendation"]["blocks"]
    document["measurements"][0]["colour"] = "blue"
    other.write_text(json.dumps(document))
    told = refused(run("plot", other, "--out", out))
    for words in (
        "made by 0.0.3",
        "recommendation.blocks: Field required",
        "measurements.1.method: Field required",
        "measurements.0.colour: Extra inputs are not permitted",
    ):
        assert words in told
    assert not out.exists()


@pytest.mark.parametrize(("columns", "shown", "left_out"), [
    (150, ["± seeds", "0 … π/2", "feature rms"], []),
    (100, ["0 … π/2", "share of decay"], ["± seeds", "feature rms"]),
    (80, ["init std", "lr", "angle (rad)", "share of decay"], ["0 … π/2", "± seeds"]),
])  # fmt: skip
def test_a_narrow_terminal_gets_fewer_columns(
    monkeypatch: pytest.MonkeyPatch, columns: int, shown: list[str], left_out: list[str]
) -> None:
    for name, value in {"COLUMNS": str(columns), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    coloured = rendered(report())
    assert "\x1b[" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    head, *_ = plain = re.sub(r"\x1b\[[0-9]m", "", rendered(report())).splitlines()  # bold may stay
    for words in shown:
        assert words in head
    for words in left_out:
        assert words not in head
    assert all(len(line) <= columns for line in plain[:7])
    assert "38;" not in rendered(report())
    assert "\x1b[31m" not in rendered(report())


def test_bars_are_to_an_eighth_of_a_character() -> None:
    assert [bar(x, 1.0) for x in (0.0, 1 / 64, 0.5, 1.0, 7.0, -1.0, None)] == [
        "",
        "▏",
        "████",
        "█" * 8,
        "█" * 8,
        "",
        "",
    ]
