"""What a restarted scheduler finds: live incarnations to take back, and remains to clear away.

Reads only Ray's names and the leaders' own descriptions; the replica manager registers what it
returns.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import ray

from cluster.actor_names import IncarnationName, parse_actor, parse_group
from cluster.config import RAY_NAMESPACE, DeploymentSpec
from cluster.errors import plain_reason
from cluster.incarnation import Incarnation, call
from cluster.ray_resources import live_groups, remove_groups

logger = logging.getLogger(__name__)

DESCRIBE_TIMEOUT_S = 2.0  # a leader that is too busy to say what it is costs its replica's restart


@dataclass(frozen=True, slots=True)
class Found:
    """A live incarnation and what its leader told."""

    incarnation: Incarnation
    told: dict[str, Any]


async def find_live(shard_class: type) -> list[Found]:
    """The incarnations that serve, at most one a replica; all others are removed."""
    shards = await asyncio.to_thread(_named_shards)
    candidates = await asyncio.gather(
        *(_describe(name, ranks, shard_class) for name, ranks in shards.items())
    )
    newest: dict[str, Found] = {}
    for found in candidates:
        if found is not None:
            name = found.incarnation.name
            other = newest.get(name.replica_id)
            if other is None or other.incarnation.name.epoch < name.epoch:
                newest[name.replica_id] = found
    kept = {found.incarnation.name for found in newest.values()}
    await asyncio.to_thread(_remove_others, shards, kept)
    return list(newest.values())


def _named_shards() -> dict[IncarnationName, dict[int, Any]]:
    """Handles of the live named shards, by incarnation and rank."""
    shards: dict[IncarnationName, dict[int, Any]] = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        parsed = parse_actor(entry["name"])
        if entry["namespace"] != RAY_NAMESPACE or parsed is None:
            continue
        incarnation, rank = parsed
        try:
            handle = ray.get_actor(entry["name"], namespace=RAY_NAMESPACE)
        except ValueError:
            continue  # it died in between
        shards.setdefault(incarnation, {})[rank] = handle
    return shards


async def _describe(
    name: IncarnationName, ranks: dict[int, Any], shard_class: type
) -> Found | None:
    """None: not a whole, serving replica."""
    try:
        told = await call(ranks[0].describe.remote(), DESCRIBE_TIMEOUT_S)
        spec = DeploymentSpec.from_json(told["deployment_json"])
        shards = [ranks[rank] for rank in range(spec.tp_size)]
        pids = await asyncio.gather(
            *(call(shard.ping.remote(), DESCRIBE_TIMEOUT_S) for shard in shards)
        )
    except (KeyError, ValueError, TypeError, TimeoutError, ray.exceptions.RayError) as e:
        logger.warning("not taken back: %s: %s", name.group, plain_reason(e))
        return None
    if told.get("state", "ready") not in ("ready", "draining") or told["epoch"] != name.epoch:
        return None
    processes = [{"pid": pid} for pid in pids]
    return Found(Incarnation.adopt(name, spec, shard_class, shards, processes), told)


def _remove_others(
    shards: dict[IncarnationName, dict[int, Any]], kept: set[IncarnationName]
) -> None:
    for name, ranks in shards.items():
        if name not in kept:
            for handle in ranks.values():
                ray.kill(handle, no_restart=True)
    ours = {name: parse_group(name) for name, _ in live_groups()}
    remove_groups({n for n, parsed in ours.items() if parsed is not None and parsed not in kept})
