"""What Ray has and holds: placement groups by name, and why one is not granted.

Blocking calls to Ray's store; callers run them in threads.
"""

from collections.abc import Collection, Iterator

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group


def live_groups() -> Iterator[tuple[str, str]]:
    """(name, id) of the placement groups that are not removed, in every namespace."""
    for group_id, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            yield group["name"], group_id


def remove_groups(names: Collection[str]) -> None:
    for name, group_id in list(live_groups()):
        if name in names:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))


def explain_missing(bundles: list[dict[str, float]]) -> str:
    """Needs against what the cluster has, has free, and has at most on one node."""
    needs = _total(bundles)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    everything = ray.cluster_resources()
    free = ray.available_resources()
    parts = [
        f"{needs[name]:g} {name} needed on one node, the cluster has {everything.get(name, 0):g} "
        f"({free.get(name, 0):g} free), its largest node "
        f"{max((node.get(name, 0) for node in nodes), default=0):g}"
        for name in sorted(needs)
        if needs[name] > free.get(name, 0) or len(nodes) > 1
    ]
    return "; ".join(parts) or "Ray has not granted them yet"


def _total(bundles: list[dict[str, float]]) -> dict[str, float]:
    names = {name for bundle in bundles for name in bundle}
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}
