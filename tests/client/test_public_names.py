"""What a user imports: which names there are, what loading them costs, and that both clients are one."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import featurespeed
from featurespeed import AsyncClient, AsyncJob, Client, Job

HEAVY = ("torch", "ray", "fastapi", "numpy", "typer", "sqlalchemy", "uvicorn")


def test_public_names() -> None:
    assert featurespeed.__all__ == [
        "AsyncClient",
        "AsyncJob",
        "Client",
        "Conflict",
        "DeadlineExceeded",
        "FeaturespeedError",
        "Forbidden",
        "InvalidSpec",
        "Job",
        "JobCancelled",
        "JobFailed",
        "JobRequest",
        "NotFound",
        "ParameterMismatch",
        "ProblemError",
        "RateLimited",
        "Report",
        "ServerUnreachable",
        "SpecError",
        "TooLarge",
        "Unauthenticated",
        "__version__",
    ]
    for name in featurespeed.__all__:
        assert getattr(featurespeed, name) is not None
    assert dir(featurespeed) == featurespeed.__all__
    with pytest.raises(AttributeError, match="nothing"):
        featurespeed.nothing  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(featurespeed.__file__ or "").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(featurespeed.__all__) <= imported


@pytest.mark.parametrize("statement", ["import featurespeed", "from featurespeed import *"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_alone_loads_not_even_httpx_or_pydantic() -> None:
    code = "import featurespeed, sys\nprint([m for m in ('httpx', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("blocking", "awaiting"), [(Client, AsyncClient), (Job, AsyncJob)])
def test_sync_and_async_have_the_same_methods(blocking: type, awaiting: type) -> None:
    def signatures(kind: type) -> dict[str, list[tuple[str, object, object]]]:
        members = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in members
            if not name.startswith("_")
        }

    assert signatures(blocking) == signatures(awaiting)
    constructors = [inspect.signature(kind.__init__).parameters for kind in (blocking, awaiting)]
    assert list(constructors[0]) == list(constructors[1])


def test_async_methods_are_awaited_or_iterated() -> None:
    for kind in (AsyncClient, AsyncJob):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_") and name != "events":  # events() hands out an asynchronous generator
                assert inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method), name
