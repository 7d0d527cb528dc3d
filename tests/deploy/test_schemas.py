"""The manifests against the schemas of their kinds, read strictly: a misspelt field is an error."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.manifests import ROOT, Manifest, all_manifests

KUBERNETES = "1.34"
CRDS = ROOT.parent / "shared" / "kuberay-crds"
BUILT_IN = [m for m in all_manifests() if not m["apiVersion"].startswith("ray.io/")]
CUSTOM = [m for m in all_manifests() if m["apiVersion"].startswith("ray.io/")]


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


@pytest.mark.parametrize("manifest", BUILT_IN, ids=name_of)
def test_built_in_kind_fits_kubernetes(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_strict_check_finds_a_misspelt_field() -> None:
    [service] = [m for m in BUILT_IN if m["kind"] == "Service"]
    broken = {**service, "spec": {**service["spec"], "selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def crd_schema(manifest: Manifest) -> Any:
    file = CRDS / f"ray.io_{manifest['kind'].lower()}s.yaml"
    if not file.is_file():
        pytest.skip("KubeRay's CRDs do not lie beside this repository")
    return read_schema(file, manifest["apiVersion"].partition("/")[2])


@cache
def read_schema(file: Path, version: str) -> Any:
    # A CRD has some ten thousand lines: the pure Python loader takes seconds for it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(file.read_text(), loader)
    [found] = [v for v in crd["spec"]["versions"] if v["name"] == version]
    schema = found["schema"]["openAPIV3Schema"]
    # The API server adds metadata's own schema; a CRD only says "object".
    schema["properties"]["metadata"] = {"type": "object"}
    return strict(schema)


def strict(schema: Any) -> Any:
    """OpenAPI as JSON Schema: objects closed, int-or-string spelt out."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {}
    for key, value in schema.items():
        # The names below `properties` are fields, not keywords.
        is_fields = key == "properties" and isinstance(value, dict)
        result[key] = {k: strict(v) for k, v in value.items()} if is_fields else strict(value)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if "properties" in result and not is_open:
        result.setdefault("additionalProperties", False)
    return result


@pytest.mark.parametrize("manifest", CUSTOM, ids=name_of)
def test_custom_kind_fits_kuberay(manifest: Manifest) -> None:
    jsonschema.validate(manifest, crd_schema(manifest))


@pytest.mark.parametrize(
    "path", [("spec", "headGroupSpecs"), ("spec", "headGroupSpec", "rayParams")]
)
def test_crd_check_finds_a_misspelt_field(path: tuple[str, ...]) -> None:
    [cluster] = [m for m in CUSTOM if m["kind"] == "RayCluster"]
    broken = yaml.safe_load(yaml.safe_dump(cluster))
    parent = broken
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = {}
    with pytest.raises(jsonschema.ValidationError, match=path[-1]):
        jsonschema.validate(broken, crd_schema(cluster))


@pytest.mark.parametrize("manifest", CUSTOM, ids=name_of)
def test_pods_of_custom_kinds_fit_kubernetes(manifest: Manifest) -> None:
    """A CRD repeats the pod's schema, but not all of its rules."""
    spec = manifest["spec"]
    groups = [spec[k] for k in ("headGroupSpec",) if k in spec] + spec.get("workerGroupSpecs", [])
    for group in groups:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": group["template"]["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_every_manifest_is_looked_at() -> None:
    kinds = sorted(m["kind"] for m in all_manifests())
    assert kinds == [
        "Deployment",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "RayCluster",
        "RayJob",
        "Service",
    ]
    assert len(BUILT_IN) + len(CUSTOM) == len(kinds)
    assert Path(CRDS).name == "kuberay-crds"
