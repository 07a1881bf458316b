"""The manifests against the schemas of Kubernetes and KubeRay, and against what we promise of them."""

import copy
import os
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from featurespeed_service.dispatch.shares import MEMORY_SAFETY
from featurespeed_service.settings import PREFIX
from tests.deploy.manifests import (
    FOLDERS,
    KUBERNETES,
    SETTINGS,
    all_resources,
    environment,
    in_bytes,
    kustomization,
    pod_specs,
    raycluster_schema,
    rendered,
    resources_of,
    with_gpu_workers,
)
from tests.deploy.test_compose import assert_is_our_command

CORE = [resource for resource in all_resources() if resource["kind"] != "RayCluster"]
RAY = next(resource for resource in all_resources() if resource["kind"] == "RayCluster")
PODS = [pod for resource in [*CORE, with_gpu_workers(RAY)] for pod in pod_specs(resource)]
CONTAINERS = [
    (f"{where}/{container['name']}", container)
    for where, spec in PODS
    for container in [*spec.get("initContainers", []), *spec["containers"]]
]
VERSION = "1.33"


def name_of(resource):
    return f"{resource['kind']}/{resource['metadata']['name']}"


def policy(name):
    return next(r for r in CORE if r["kind"] == "NetworkPolicy" and r["metadata"]["name"] == name)["spec"]


@pytest.fixture(scope="module")
def of_raycluster():
    return jsonschema.Draft202012Validator(raycluster_schema())


@pytest.mark.parametrize("resource", CORE, ids=name_of)
def test_core_resources_fit_their_schema(resource):
    kubernetes_validate.validate(resource, VERSION, strict=True)


def test_a_misspelt_field_is_caught():
    wrong = copy.deepcopy(next(resource for resource in CORE if resource["kind"] == "Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_raycluster_fits_its_schema(of_raycluster):
    assert [error.message for error in of_raycluster.iter_errors(with_gpu_workers(RAY))] == []


@pytest.mark.parametrize("path", ["spec", "spec.autoscalerOptions", "spec.headGroupSpec.template.spec.containers.1"])
def test_a_misspelt_field_of_the_raycluster_is_caught(of_raycluster, path):
    wrong = copy.deepcopy(RAY)
    target = wrong
    for key in path.split("."):
        target = target[int(key) if key.isdigit() else key]
    target["memroy"] = "1Gi"
    assert any("memroy" in error.message for error in of_raycluster.iter_errors(wrong))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomizations_list_what_is_there(folder):
    listed = kustomization(folder)
    patches = [patch["path"] for patch in listed.get("patches", [])]
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert {name for name in [*listed["resources"], *patches] if name.endswith(".yaml")} == files
    assert all((folder / name).exists() for name in listed["resources"])
    targets = [patch["target"] for patch in listed.get("patches", [])]
    there = {name_of(resource) for resource in all_resources()}
    assert {f"{target['kind']}/{target['name']}" for target in targets} <= there


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_kubectl_renders_is_valid(folder, of_raycluster):
    assert_valid(rendered(folder), of_raycluster)


def assert_valid(resources, of_raycluster):
    for resource in resources:
        if resource["kind"] == "RayCluster":
            assert list(of_raycluster.iter_errors(resource)) == []
        else:
            kubernetes_validate.validate(resource, VERSION, strict=True)


def overlay(folder, **fields):
    """A new overlay of the external database's, rendered."""
    base = {"resources": [os.path.relpath(KUBERNETES / "overlays/external-database", folder.resolve())]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(base | fields))
    return rendered(folder)


def api_ports(resources):
    policy = next(r["spec"] for r in resources if r["kind"] == "NetworkPolicy" and r["metadata"]["name"] == "api")
    return {port["port"] for rule in policy["egress"] for port in rule["ports"]}


def test_the_patch_for_another_port_of_the_database_lets_the_api_reach_it(tmp_path):
    comments = re.findall("^# (.*)", (KUBERNETES / "overlays/external-database/kustomization.yaml").read_text(), re.M)
    patch = yaml.safe_load("\n".join(comments[comments.index("patches:") :]))
    assert api_ports(overlay(tmp_path, **patch)) == {53, 5432, 6432}


def test_traces_leave_the_api_and_the_dispatcher(tmp_path, of_raycluster):
    component = os.path.relpath(KUBERNETES / "components/traces", tmp_path.resolve())
    resources = overlay(tmp_path, components=[component])
    assert_valid(resources, of_raycluster)
    assert api_ports(resources) == {53, 5432, 4318}
    told = {
        container["name"]: container["env"][-1]["value"]
        for resource in resources
        for _, spec in pod_specs(resource)
        for container in spec["containers"]
        if container.get("env", [{}])[-1].get("name") == "FEATURESPEED_OTLP_ENDPOINT"
    }
    assert set(told) == {"api", "dispatcher"}
    assert set(told.values()) == {"http://collector.observability:4318"}


@pytest.mark.parametrize(("where", "container"), CONTAINERS, ids=[where for where, _ in CONTAINERS])
def test_containers_are_bounded_and_closed(where, container):
    assert container["resources"]["requests"] == container["resources"]["limits"]
    security = container["securityContext"]
    assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True)
    assert security["capabilities"] == {"drop": ["ALL"]}
    for variable in container.get("env", []):
        if variable["name"].startswith(PREFIX):
            assert variable["name"].removeprefix(PREFIX).lower() in SETTINGS
        if re.search("PASSWORD|TOKEN|KEY|DATABASE$", variable["name"]):
            assert "secretKeyRef" in variable["valueFrom"]
    if container.get("command", [""])[0] == "featurespeed":
        assert_is_our_command(container["command"])


@pytest.mark.parametrize(("where", "spec"), PODS, ids=[where for where, _ in PODS])
def test_pods_run_as_nobody_special(where, spec):
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert where == "head" or spec["automountServiceAccountToken"] is False  # the autoscaler there asks Kubernetes
    assert spec["terminationGracePeriodSeconds"] >= 15


def test_images_have_one_version_each():
    images = {container["image"].removesuffix("-cuda") for _, container in CONTAINERS}
    assert images == {"featurespeed-api:0.1.0", "featurespeed-worker:0.1.0", "postgres:17-bookworm"}


def test_no_manifest_holds_a_secret():
    assert "Secret" not in {resource["kind"] for resource in all_resources()}
    assert RAY["spec"]["authOptions"] == {"mode": "token", "secretName": "featurespeed-ray-token"}


def test_rays_ports_answer_ray_alone():
    ray = policy("ray")
    own = {"matchLabels": {"ray.io/cluster": RAY["metadata"]["name"]}}  # KubeRay labels every pod with it
    assert ray == {"podSelector": own, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": own}]}]}


def test_the_api_reaches_dns_and_the_database_alone():
    api = policy("api")
    assert set(api["policyTypes"]) == {"Ingress", "Egress"}
    assert {port["port"] for rule in api["egress"] for port in rule["ports"]} == {53, 5432}


def test_postgres_answers_the_api_and_the_head_alone():
    postgres = policy("postgres")
    [rule] = postgres["ingress"]
    labels = [source["podSelector"]["matchLabels"] for source in rule["from"]]
    assert labels == [{"app": "featurespeed-api"}, {"ray.io/cluster": "featurespeed", "ray.io/node-type": "head"}]
    assert [port["port"] for port in rule["ports"]] == [5432]


def test_the_head_computes_nothing_and_shares_its_sockets_with_the_dispatcher():
    head = RAY["spec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["shareProcessNamespace"] is True
    ray, dispatcher = head["template"]["spec"]["containers"]
    shared = [{mount["mountPath"] for mount in container["volumeMounts"]} for container in (ray, dispatcher)]
    assert all({"/tmp/ray", "/dev/shm"} <= paths for paths in shared)


def memory_of_a_cell(path):
    [deployment] = [r for r in resources_of(KUBERNETES / path) if r["kind"] == "Deployment"]
    return int(environment(deployment["spec"]["template"]["spec"]["containers"][0])["FEATURESPEED_MAX_MEMORY_BYTES"])


def test_a_worker_has_memory_for_the_largest_cell_on_each_cpu():
    [group] = RAY["spec"]["workerGroupSpecs"]
    there = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    for_cells = in_bytes(there["memory"]) - int(group["rayStartParams"]["object-store-memory"])
    assert 2**30 < memory_of_a_cell("base/api.yaml") <= for_cells / int(there["cpu"])


def test_gpu_workers_come_from_zero_and_have_memory_for_the_largest_cell():
    cluster = with_gpu_workers(RAY)["spec"]
    dispatcher = environment(cluster["headGroupSpec"]["template"]["spec"]["containers"][1])
    assert dispatcher["FEATURESPEED_AUTOSCALING"] == "true"
    assert [(group["groupName"], group["replicas"], group["minReplicas"]) for group in cluster["workerGroupSpecs"]] == [
        ("cpu", 0, 0),
        ("gpu", 0, 0),
    ]
    largest = memory_of_a_cell("overlays/gpu/memory.yaml")
    assert memory_of_a_cell("base/api.yaml") < largest
    assert largest * MEMORY_SAFETY <= int(dispatcher["FEATURESPEED_GPU_MEMORY_BYTES"])
    limits = cluster["workerGroupSpecs"][-1]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert largest <= in_bytes(limits["memory"])


def test_a_new_version_replaces_the_dispatcher():
    assert RAY["spec"]["upgradeStrategy"] == {"type": "Recreate"}  # by default KubeRay leaves pods that run as they are


def test_gpu_workers_ask_for_a_gpu_and_tolerate_its_taint():
    group = with_gpu_workers(RAY)["spec"]["workerGroupSpecs"][-1]["template"]["spec"]
    assert group["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert group["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert (KUBERNETES / "overlays/gpu").is_dir()
    assert yaml.safe_load((KUBERNETES / "overlays/gpu/kustomization.yaml").read_text())["images"][0]["newTag"].endswith(
        "cuda"
    )
