"""The images' install script, in a fresh virtual environment, and the API that comes of it. `make chaos` runs it."""

import subprocess
import urllib.request

import pytest

from tests.cli.command import ENVIRONMENT
from tests.deploy.manifests import ROOT

SCRIPT = ROOT / "deploy/docker/install.sh"


def test_the_script_says_how_it_is_used():
    done = subprocess.run(["sh", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: install.sh api|worker SOURCE VENV")


def test_the_api_runs_without_torch_and_ray(full, tmp_path):
    if not full:
        pytest.skip("a minute and the package registry: make chaos")
    done = subprocess.run(["sh", SCRIPT, "api", ROOT, tmp_path / "venv"], capture_output=True, text=True, timeout=280)
    if done.returncode and ("ConnectionError" in done.stderr or "No matching distribution" in done.stderr):
        pytest.skip(f"the package registry cannot be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.glob("venv/lib/*/site-packages/torch"), *tmp_path.glob("venv/lib/*/site-packages/ray")]
    clean = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        [
            tmp_path / "venv/bin/featurespeed",
            "serve",
            "--no-dispatcher",
            "--port",
            "0",
            "--data-dir",
            tmp_path / "data",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=clean,
    ) as api:
        try:
            with urllib.request.urlopen(f"{api.stdout.readline().split()[-1]}/livez", timeout=10) as answer:
                assert answer.status == 200
        finally:
            api.terminate()
        assert api.wait(10) == 0
