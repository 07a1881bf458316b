"""The manifests of deploy/kubernetes, and the schema of a RayCluster."""

import copy
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from featurespeed_service.settings import Settings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
SETTINGS = set(Settings.model_fields)
FOLDERS = sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml") if path.parts[-3] != "components")


def resources_of(path):
    return list(yaml.safe_load_all(path.read_text()))


def resource_files(folder):
    return [folder / name for name in kustomization(folder)["resources"] if name.endswith(".yaml")]


def kustomization(folder):
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def all_resources():
    return [resource for folder in FOLDERS for path in resource_files(folder) for resource in resources_of(path)]


def rendered(folder):
    """What ``kubectl apply -k`` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the overlays are not rendered")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def raycluster_schema():
    """JSON Schema of a ray.io/v1 RayCluster that knows no other fields than the documented ones."""
    common = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    places = [ROOT.parent, *([Path(common).parents[1]] if common else [])]  # beside a worktree's main checkout, too
    found = [place / "shared/kuberay/raycluster-crd.yaml" for place in places]
    path = next((path for path in found if path.exists()), None)
    if path is None:
        pytest.skip(f"the schema of a RayCluster is not at {found[0]}")
    versions = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    return closed(schema)


def closed(schema):
    """The same schema with additionalProperties: false wherever properties are known."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if isinstance(found.get("properties"), dict) and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def pod_specs(resource):
    """(where, spec) of every pod that a resource makes."""
    spec = resource.get("spec", {})
    if "template" in spec:
        yield resource["metadata"]["name"], spec["template"]["spec"]
    if resource["kind"] == "RayCluster":
        yield "head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield group["groupName"], group["template"]["spec"]


def with_gpu_workers(cluster):
    """The RayCluster as the GPU overlay's patch leaves it."""
    patched = copy.deepcopy(cluster)
    for operation in yaml.safe_load((KUBERNETES / "overlays/gpu/gpu-workers.yaml").read_text()):
        *keys, last = operation["path"].removeprefix("/").split("/")
        target = patched
        for key in keys:
            target = target[int(key) if key.isdigit() else key]
        if last == "-":
            assert operation["op"] == "add"
            target.append(operation["value"])
        else:
            assert operation["op"] == "replace"
            assert last in target
            target[last] = operation["value"]
    return patched


def environment(container):
    """The variables of a container that have a value in its manifest."""
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def in_bytes(quantity):
    """A quantity of memory, as Kubernetes writes it."""
    return int(quantity.removesuffix("Gi")) * 2**30
