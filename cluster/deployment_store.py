"""The deployments' specifications in Ray's own key-value store: what a restarted scheduler has to
run even if no replica survived to tell it.

Blocking calls to Ray's store; callers run them in threads.
"""

from ray.experimental import internal_kv

from cluster.config import DeploymentSpec

NAMESPACE = "shoal"
PREFIX = b"deployment/"


def save(spec: DeploymentSpec) -> None:
    key = PREFIX + spec.name.encode()
    internal_kv._internal_kv_put(key, spec.to_json().encode(), namespace=NAMESPACE)


def load_all() -> list[DeploymentSpec]:
    keys = internal_kv._internal_kv_list(PREFIX, namespace=NAMESPACE)
    values = (internal_kv._internal_kv_get(key, namespace=NAMESPACE) for key in keys)
    return [DeploymentSpec.from_json(value.decode()) for value in values if value is not None]


def delete(name: str) -> None:
    internal_kv._internal_kv_del(PREFIX + name.encode(), namespace=NAMESPACE)
