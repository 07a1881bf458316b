"""docs/api.md lists every type of problem and of job error that the code can make, and no other."""

import ast
import re
from pathlib import Path

from featurespeed_service.api.problems import TYPES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()
MODULES = {
    path: ast.parse(path.read_text()) for part in ("workers", "service") for path in sorted((ROOT / part).rglob("*.py"))
}


def rows(heading):
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| `.*$", section, re.M)]


def constants():
    """Texts that modules give a name."""
    for module in MODULES.values():
        for node in module.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        yield target.id, node.value.value


def texts(node, named):
    if isinstance(node, ast.IfExp):
        return texts(node.body, named) | texts(node.orelse, named)
    if isinstance(node, ast.Name) and node.id in named:
        return {named[node.id]}
    return {node.value} if isinstance(node, ast.Constant) else set()


def raised():
    """Types of job errors in the source."""
    named, found = dict(constants()), set()
    for module in MODULES.values():
        for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
            if getattr(call.func, "id", None) in ("MeasurementError", "JobError"):
                given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "type")]
            else:
                given = [keyword.value for keyword in call.keywords if keyword.arg == "error_type"]
            for node in given:
                found |= texts(node, named)
    return found


def test_every_problem_is_listed_with_its_status():
    listed = {slug.strip("`"): int(status) for slug, status, *_ in rows("Problems")}
    assert listed == {slug: kind.status.value for slug, kind in TYPES.items()}
    assert all(all(cells) and len(cells) == 5 for cells in rows("Problems"))


def test_every_job_error_is_listed():
    listed = [cells[0].strip("`") for cells in rows("Errors of jobs")]
    assert sorted(listed) == sorted(raised())
    assert all(all(cells) and len(cells) == 3 for cells in rows("Errors of jobs"))


def test_every_operation_declares_its_problems(api):
    document = api.http.get("/openapi.json").json()
    assert "HTTPValidationError" not in str(document)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            refusals = {status: answer for status, answer in operation["responses"].items() if int(status) >= 400}
            assert "500" in refusals, (method, path)
            for answer in refusals.values():
                assert list(answer["content"]) == ["application/problem+json"], (method, path)
