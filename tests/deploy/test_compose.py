"""deploy/compose.yaml and the images."""

import os
import re
import shlex
import stat
import subprocess
import tomllib

import pytest
import typer.main
import yaml

from featurespeed.cli.app import app
from featurespeed_service.settings import PREFIX
from tests.deploy.manifests import ROOT, SETTINGS

COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
SERVICES = COMPOSE["services"]
WITH_GPU = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())["services"]


def assert_is_our_command(words):
    """The command line takes these words: every command and option exists. Nothing is run."""
    assert words[0] == "featurespeed"
    command, arguments = typer.main.get_command(app), list(words[1:])
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("featurespeed", arguments, resilient_parsing=False)


def our_commands(service):
    command = service.get("command", [])
    if command[:2] == ["sh", "-c"]:
        parts = [shlex.split(part) for part in command[2].split("&&")]
        return [part[1:] if part[0] == "exec" else part for part in parts]
    return [[str(word) for word in command]] if command else []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_healthy_restarted_and_given_its_secrets_by_file(name):
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert set(service["secrets"]) <= set(COMPOSE["secrets"])
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    for other, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]
    for variable, value in service["environment"].items():
        if variable.startswith(PREFIX):
            assert variable.removeprefix(PREFIX).lower() in SETTINGS
        if value.startswith("/run/secrets/"):
            assert value.removeprefix("/run/secrets/") in service["secrets"]
    for command in our_commands(service):
        if command[0] == "featurespeed":
            assert_is_our_command(command)
        else:
            assert command[:2] == ["ray", "start"]


@pytest.mark.parametrize("name", ["ray-head", "worker"])
def test_rays_objects_fit_into_shared_memory(name):
    service = SERVICES[name]
    [ray] = [command for command in our_commands(service) if command[0] == "ray"]
    [asked] = [int(word.split("=")[1]) for word in ray if word.startswith("--object-store-memory=")]
    number, unit = int(service["shm_size"][:-1]), service["shm_size"][-1]
    assert asked < number * {"m": 2**20, "g": 2**30}[unit]  # else Ray takes /tmp in its place


@pytest.mark.parametrize("services", [SERVICES, WITH_GPU], ids=["cpu", "gpu"])
def test_the_budget_is_not_that_of_the_apis_machine(services):
    given = services["api"]["environment"]["FEATURESPEED_MAX_MEMORY_BYTES"]
    assert re.fullmatch(r"\$\{FEATURESPEED_MAX_MEMORY_BYTES:-\d{10,}}", given)


def test_the_file_for_gpus_changes_services_that_are_there():
    assert set(WITH_GPU) <= set(SERVICES)
    for name in ("ray-head", "worker"):
        assert WITH_GPU[name]["image"] == f"{SERVICES[name]['image']}-cuda"
    build = WITH_GPU["ray-head"]["build"]  # merged into the other, which says from where
    assert set(build["args"]) <= set(
        re.findall(r"^ARG (\w+)", (ROOT / "deploy/docker/worker.Dockerfile").read_text(), re.M)
    )
    [devices] = WITH_GPU["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (devices["driver"], devices["capabilities"]) == ("nvidia", ["gpu"])


def test_what_is_built_is_built_with_pinned_versions():
    pinned = {line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]) <= pinned
    assert any(line.startswith("setuptools==") for line in pinned)  # torch's, which no environment of ours names


def test_only_the_api_is_reachable_and_only_from_this_machine():
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "api": ["127.0.0.1:8000:8000"]
    }
    assert not set(SERVICES["api"]["networks"]) & set(SERVICES["ray-head"]["networks"])
    assert COMPOSE["networks"]["data"]["internal"]
    assert COMPOSE["networks"]["ray"]["internal"]


def test_an_unknown_command_would_be_seen():
    with pytest.raises(KeyError):
        assert_is_our_command(["featurespeed", "despatcher"])


def test_secrets_are_random_private_and_kept(tmp_path):
    (tmp_path / "make-secrets.sh").write_text((ROOT / "deploy/make-secrets.sh").read_text())
    first = _secrets(tmp_path)
    assert set(first) == {secret["file"].removeprefix("secrets/") for secret in COMPOSE["secrets"].values()}
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert _secrets(tmp_path) == first
    assert re.fullmatch("fsk_[0-9a-f]{16}_[0-9a-f]{64}", first["bootstrap_key"])
    assert len(set(first.values())) == 3
    (tmp_path / "secrets/ray_token").unlink()
    assert _secrets(tmp_path)["ray_token"] != first["ray_token"]


def _secrets(folder):
    subprocess.run(
        ["sh", folder / "make-secrets.sh"], check=True, capture_output=True, env={"PATH": os.environ["PATH"]}
    )
    return {path.name: path.read_text() for path in (folder / "secrets").iterdir()}


@pytest.mark.parametrize("role", ["api", "worker"])
def test_images_are_built_by_the_install_script_and_run_as_nobody(role):
    text = (ROOT / f"deploy/docker/{role}.Dockerfile").read_text()
    assert f"/source/deploy/docker/install.sh {role} /source /opt/featurespeed" in text
    assert text.count("FROM ${PYTHON}") == 2
    assert "USER 10001:10001" in text
    assert "HEALTHCHECK" in text
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert all((ROOT / line[1:]).exists() for line in ignored if line.startswith("!"))


def test_scripts_parse_and_commands_in_the_documentation_exist():
    for script in ("deploy/slurm/featurespeed.sbatch", "deploy/docker/install.sh", "deploy/make-secrets.sh"):
        subprocess.run(["bash", "-n", ROOT / script], check=True)
    page = (ROOT / "docs/deploy.md").read_text()
    named = re.findall(r"`(featurespeed [^`]+)`", page)
    shown = re.findall(r"^(?:\$ )?(featurespeed .*)$", page, re.MULTILINE)
    unit = re.findall(
        r"^ExecStart=.*/(featurespeed .*)$", (ROOT / "deploy/systemd/featurespeed.service").read_text(), re.M
    )
    assert named
    assert shown
    assert unit
    for command in [*named, *shown, *unit]:
        assert_is_our_command(shlex.split(command))
    for path in re.findall(r"\bdeploy/(?!secrets)[\w/.-]*\w", page):
        assert (ROOT / path).exists(), path
