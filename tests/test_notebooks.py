"""The notebooks run from top to bottom, and what their texts promise comes out; in git they have no outputs."""

import ast
import os
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.test_docs import LINK

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@cache
def executed(name: str) -> NotebookNode:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    return notebook


def outputs(name: str) -> list[NotebookNode]:
    return [output for cell in executed(name).cells for output in cell.get("outputs", ())]


def printed(name: str) -> str:
    return "".join(output.text for output in outputs(name) if output.get("name") == "stdout")


@pytest.mark.parametrize("name", NAMES)
def test_kept_without_outputs_and_with_links_that_lead_somewhere(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
        else:
            for link in LINK.findall(cell.source):
                assert "://" in link or (FOLDER / link).resolve().exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_runs_without_a_warning(name: str) -> None:
    told = [output.text for output in outputs(name) if output.get("name") == "stderr"]
    assert [text for text in told if "warning" in text.lower()] == []
    assert any("image/png" in output.get("data", {}) for output in outputs(name))


def test_rates_of_a_transformer_are_about_as_good_as_a_sweep() -> None:
    name = "transformer_rates"
    assert any("<table" in output.get("data", {}).get("text/html", "") for output in outputs(name))
    final = ast.literal_eval(outputs(name)[-1].data["text/plain"])
    recommended = final.pop("recommended")
    assert len(final) == 4
    assert recommended < 1.05 * min(final.values())


def test_angles_are_smaller_at_the_start_and_too_large_a_rate_is_told() -> None:
    text = printed("angles_along_training")
    angles = [float(angle) for angle in re.findall(r"θ (\S+)", text)]
    assert angles[0] < angles[4] < angles[8] < 1.57
    wild, unstable = text.split("rate 1.0")[1].split("rate 0.2")
    assert re.search(r"step 0: .*\n(    .*\n)*    FL fails: .* too large", wild)
    assert "FL" not in unstable.split("step 5")[0]
    assert "BC fails" in unstable


def test_a_wrong_backward_pass_is_seen_by_differences_alone() -> None:
    found = re.findall(r"(\w+), (\w+): residual (\S+), by (\w+)", printed("judge_a_recommendation"))
    residuals = {(method, module): float(residual) for method, module, residual, _ in found}
    assert [by for *_, by in found] == ["exact", "double_backward", "central_difference", "central_difference"]
    assert residuals["exact", "WrongRelu"] < 1e-6
    assert "a backward pass is not the derivative of its forward pass" in printed("judge_a_recommendation")
    assert residuals["central_difference", "WrongRelu"] > 30 * residuals["central_difference", "ReLU"]
    spreads = re.findall(r"(\w+) +width +(\d+): seeds differ by (.*)", printed("judge_a_recommendation"))
    widest = {(name, int(w)): max(map(float, re.findall(r"[\d.]+", factors))) for name, w, factors in spreads}
    for name in ("adamw", "sgd"):
        assert widest[name, 16] > widest[name, 64] > widest[name, 256]
