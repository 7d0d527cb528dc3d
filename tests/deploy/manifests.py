"""The files of deploy/, loaded for the tests beside this one."""

import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERAY = DEPLOY / "kuberay"

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return [doc for doc in yaml.safe_load_all(path.read_text(encoding="utf-8")) if doc]


def all_manifests() -> list[Manifest]:
    return [doc for path in sorted(KUBERAY.glob("*.yaml")) for doc in documents(path)]


def manifest(kind: str, name: str) -> Manifest:
    [found] = [m for m in all_manifests() if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pod_templates() -> dict[str, Manifest]:
    """Every pod template by a name for the test's output."""
    cluster = manifest("RayCluster", "shoal")["spec"]
    return {
        "gateway": manifest("Deployment", "shoal-gateway")["spec"]["template"],
        "head": cluster["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
    }


def container_of(pod: str) -> Manifest:
    [container] = pod_templates()[pod]["spec"]["containers"]
    return dict(container)


def container_ports(pod: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(pod)["ports"]}


def launcher_arguments() -> list[str]:
    """What the job runs, without the command's own name."""
    words = shlex.split(manifest("RayJob", "shoal-serve")["spec"]["entrypoint"])
    assert words[0] == "shoal"
    return words[1:]


def dockerfile(name: str) -> list[tuple[str, str]]:
    """(instruction, rest of the logical line), comments and continuations resolved."""
    path = DEPLOY / "docker" / f"Dockerfile.{name}"
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    pairs = (line.split(maxsplit=1) for line in logical if line.strip())
    return [(pair[0], pair[1] if len(pair) > 1 else "") for pair in pairs]
