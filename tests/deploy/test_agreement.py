"""The manifests against the code and each other: flags, ports, paths, time-outs, labels."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import parse
from cluster.options import serve_options
from gateway.__main__ import parse_args
from tests.deploy.manifests import (
    DEPLOY,
    ROOT,
    Manifest,
    container_of,
    container_ports,
    dockerfile,
    launcher_arguments,
    manifest,
    pod_templates,
)

HEAD_SERVICE = "shoal-head-svc"  # KubeRay: the cluster's name and "-head-svc"


def seconds_of(command: list[str]) -> float:
    assert command[0] == "sleep"
    return float(command[1])


def test_launcher_leaves_a_deployment_without_gateways() -> None:
    options = serve_options(parse(launcher_arguments()), {})
    assert options.detach and options.num_gateways == 0 and options.address == "auto"


def test_launchers_ports_are_the_heads() -> None:
    options = serve_options(parse(launcher_arguments()), {})
    ports = container_ports("head")
    assert ports["scheduler"] == options.scheduler_port
    assert ports["sched-metrics"] == options.metrics_port


def test_launcher_finds_the_ray_cluster() -> None:
    selector = manifest("RayJob", "shoal-serve")["spec"]["clusterSelector"]
    assert selector == {"ray.io/cluster": manifest("RayCluster", "shoal")["metadata"]["name"]}


def test_models_folder_is_the_same_path_on_every_ray_node() -> None:
    options = serve_options(parse(launcher_arguments()), {})
    for pod in ("head", "gpu"):
        mounts = {m["name"]: m["mountPath"] for m in container_of(pod)["volumeMounts"]}
        assert mounts["models"] == options.download_dir
    claim = manifest("PersistentVolumeClaim", "shoal-models")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_workers_have_the_gpus_of_their_replicas() -> None:
    options = serve_options(parse(launcher_arguments()), {})
    [group] = manifest("RayCluster", "shoal")["spec"]["workerGroupSpecs"]
    gpus = int(container_of("gpu")["resources"]["limits"]["nvidia.com/gpu"])
    assert options.tp_size is not None
    assert gpus % options.tp_size == 0, "a replica does not span pods"
    assert gpus * group["replicas"] >= options.tp_size * options.num_replicas


def test_ray_asks_for_a_token() -> None:
    assert manifest("RayCluster", "shoal")["spec"]["authOptions"] == {"mode": "token"}


def test_no_shard_runs_on_the_head() -> None:
    assert (
        manifest("RayCluster", "shoal")["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"]
        == "0"
    )


def test_gateways_arguments_are_real_and_point_at_the_head() -> None:
    args = parse_args(container_of("gateway")["args"])
    assert args.scheduler == f"{HEAD_SERVICE}:{container_ports('head')['scheduler']}"
    assert args.port == container_ports("gateway")["http"]


def test_gateway_has_time_to_drain() -> None:
    args = parse_args(container_of("gateway")["args"])
    before = seconds_of(container_of("gateway")["lifecycle"]["preStop"]["exec"]["command"])
    grace = pod_templates()["gateway"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= before + args.shutdown_timeout + 5


def test_key_of_the_secret_is_the_variable_that_the_gateway_reads() -> None:
    names = {variable["name"] for variable in container_of("gateway")["env"]}
    source = (ROOT / "gateway" / "__main__.py").read_text()
    assert names == {"SHOAL_API_KEY"} and '"SHOAL_API_KEY"' in source


def route_paths() -> set[str]:
    """Every literal path in the gateway's routes."""
    found: set[str] = set()
    for file in (ROOT / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} if node.value.startswith("/") else set()
    return found


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/livez"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")],
)
def test_probes_ask_for_paths_that_exist(probe: str, path: str) -> None:
    get = container_of("gateway")[probe]["httpGet"]
    assert get["path"] == path and path in route_paths()
    assert get["port"] in container_ports("gateway")


def test_service_and_budget_select_the_gateways() -> None:
    labels = pod_templates()["gateway"]["metadata"]["labels"].items()
    deployment = manifest("Deployment", "shoal-gateway")["spec"]
    service = manifest("Service", "shoal")["spec"]
    budget = manifest("PodDisruptionBudget", "shoal-gateway")["spec"]
    selectors = [
        service["selector"],
        budget["selector"]["matchLabels"],
        deployment["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels
    assert {port["targetPort"] for port in service["ports"]} <= set(container_ports("gateway"))
    assert budget["minAvailable"] < deployment["replicas"], "a node could never be drained"


@pytest.mark.parametrize("pod", sorted(pod_templates()))
def test_pods_run_with_no_more_rights_than_they_need(pod: str) -> None:
    spec, container = pod_templates()[pod]["spec"], container_of(pod)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_gateway_cannot_write_but_to_tmp() -> None:
    container = container_of("gateway")
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


@pytest.mark.parametrize("pod", ["head", "gpu"])
def test_ray_pods_have_shared_memory_of_their_own(pod: str) -> None:
    [mount] = [m for m in container_of(pod)["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    volumes = {v["name"]: v for v in pod_templates()[pod]["spec"]["volumes"]}
    assert volumes[mount["name"]]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("pod", sorted(pod_templates()))
def test_mounts_have_volumes(pod: str) -> None:
    volumes = {volume["name"] for volume in pod_templates()[pod]["spec"]["volumes"]}
    assert {mount["name"] for mount in container_of(pod)["volumeMounts"]} == volumes


# ---- images ----


@pytest.mark.parametrize("name", ["gateway", "ray"])
def test_copied_sources_exist(name: str) -> None:
    sources = [
        source
        for instruction, rest in dockerfile(name)
        if instruction == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    missing = [source for source in sources if not (ROOT / source).exists()]
    assert sources and not missing


def packages_imported(package: str) -> set[str]:
    """Packages of ours that a package imports, in whatever place."""
    ours = {"protos", "worker", "cluster", "gateway"}
    found: set[str] = set()
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {name.partition(".")[0] for name in names} & ours
    return found


@pytest.mark.parametrize("name", ["gateway", "ray"])
def test_images_hold_every_package_that_their_code_imports(name: str) -> None:
    copied = {
        rest.split()[0]
        for instruction, rest in dockerfile(name)
        if instruction == "COPY" and (ROOT / rest.split()[0] / "__init__.py").exists()
    }
    needed = set[str]().union(*(packages_imported(package) for package in copied))
    assert needed <= copied
    assert ("worker" in copied) == ("cluster" in copied) == (name == "ray")


@pytest.mark.parametrize(("name", "extra"), [("gateway", "gateway"), ("ray", "cluster")])
def test_images_install_their_extra_and_run_unprivileged(name: str, extra: str) -> None:
    instructions = dockerfile(name)
    installs = [rest for instruction, rest in instructions if instruction == "RUN"]
    assert any(f'".[{extra}]"' in rest for rest in installs)
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
    assert [rest for instruction, rest in instructions if instruction == "USER"] == ["1000"]


def exec_form(name: str, instruction: str) -> list[str]:
    [rest] = [rest for found, rest in dockerfile(name) if found == instruction]
    words: list[str] = json.loads(rest)
    return words


def exposed(name: str) -> set[int]:
    return {int(p) for found, rest in dockerfile(name) if found == "EXPOSE" for p in rest.split()}


def test_gateway_image_starts_with_real_flags_on_its_exposed_port() -> None:
    assert exec_form("gateway", "ENTRYPOINT") == ["python", "-m", "gateway"]
    assert exposed("gateway") == {parse_args(exec_form("gateway", "CMD")).port}
    assert exposed("gateway") == set(container_ports("gateway").values())


def test_ray_image_exposes_the_heads_ports_and_starts_the_launcher() -> None:
    assert exposed("ray") == set(container_ports("head").values())
    [script] = re.findall(r"^(\w+) = \"cluster\.cli:main\"", pyproject(), flags=re.MULTILINE)
    assert exec_form("ray", "ENTRYPOINT") == [script]


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()


def test_ray_is_the_same_version_in_image_and_cluster() -> None:
    [argument] = [rest for found, rest in dockerfile("ray") if found == "ARG"]
    version = manifest("RayCluster", "shoal")["spec"]["rayVersion"]
    assert argument == f"RAY_VERSION={version}"
    lowest, highest = re.findall(r'"ray>=([\d.]+),<(\d+)"', pyproject())[0]
    assert [int(p) for p in lowest.split(".")] <= [int(p) for p in version.split(".")]
    assert int(version.split(".")[0]) < int(highest)


def test_images_carry_the_projects_version() -> None:
    [version] = re.findall(r'^version = "(.+)"', pyproject(), flags=re.MULTILINE)
    for pod in pod_templates():
        assert container_of(pod)["image"].endswith(f":{version}")


def test_comments_name_the_image_of_the_manifests() -> None:
    for name in ("gateway", "ray"):
        text = (DEPLOY / "docker" / f"Dockerfile.{name}").read_text()
        image = container_of("gateway" if name == "gateway" else "head")["image"]
        assert f"-t {image} ." in text


# ---- Prometheus ----


def prometheus() -> Manifest:
    loaded: Manifest = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    return loaded


def targets() -> list[dict[str, str]]:
    """The labels Prometheus discovers for each port of each pod."""
    head = {"ray.io/cluster": "shoal", "ray.io/node-type": "head"}  # set by KubeRay
    worker = {"ray.io/cluster": "shoal", "ray.io/node-type": "worker"}
    own: dict[str, dict[str, str]] = {"head": head, "gpu": worker, "gateway": {}}
    found = []
    for pod, template in pod_templates().items():
        labels = {**template["metadata"]["labels"], **own[pod]}
        meta = {
            "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", key): value
            for key, value in labels.items()
        }
        for port in container_of(pod).get("ports", [{"name": ""}]):
            name = {"__meta_kubernetes_pod_container_port_name": port["name"]}
            found.append({**meta, **name, "pod": pod})
    return found


def is_kept(target: dict[str, str], rules: list[dict[str, Any]]) -> bool:
    for rule in rules:
        value = ";".join(target.get(label, "") for label in rule["source_labels"])
        if rule.get("action") == "keep" and re.fullmatch(rule["regex"], value) is None:
            return False
    return True


@pytest.mark.parametrize(
    ("job", "pod", "port"),
    [("shoal-gateway", "gateway", "http"), ("shoal-scheduler", "head", "sched-metrics")],
)
def test_prometheus_keeps_just_the_port_with_metrics(job: str, pod: str, port: str) -> None:
    [config] = [c for c in prometheus()["scrape_configs"] if c["job_name"] == job]
    kept = [t for t in targets() if is_kept(t, config["relabel_configs"])]
    assert [(t["pod"], t["__meta_kubernetes_pod_container_port_name"]) for t in kept] == [
        (pod, port)
    ]


def test_metrics_path_is_the_gateways() -> None:
    paths = {config["metrics_path"] for config in prometheus()["scrape_configs"]}
    assert paths == {"/metrics"} and "/metrics" in route_paths()


def test_nothing_in_deploy_is_left_unchecked() -> None:
    files = {str(f.relative_to(DEPLOY)) for f in DEPLOY.rglob("*") if f.is_file()}
    assert files == {
        "docker/Dockerfile.gateway",
        "docker/Dockerfile.ray",
        "kuberay/gateway.yaml",
        "kuberay/raycluster.yaml",
        "kuberay/serve-job.yaml",
        "prometheus/prometheus.yaml",
    }
    assert all(Path(DEPLOY / file).read_text().startswith("#") for file in files)
