"""The cluster as `shoal status` and other programs read it: a snapshot turned into JSON types.
Pure.
"""

from collections.abc import Callable
from typing import Any

from cluster.state import ClusterState, DeploymentInfo, ReplicaInfo

Processes = Callable[[str], list[dict[str, Any]]]  # of a replica, by rank


def cluster_status(
    state: ClusterState, queued: Callable[[str], tuple[int, float]], processes: Processes
) -> dict[str, Any]:
    """`queued`: (requests, seconds the oldest has waited) of a deployment."""
    return {"deployments": [_deployment(info, queued, processes) for info in state.deployments]}


def _deployment(
    info: DeploymentInfo, queued: Callable[[str], tuple[int, float]], processes: Processes
) -> dict[str, Any]:
    num_queued, oldest_wait_s = queued(info.spec.name)
    return {
        "name": info.spec.name,
        "served_names": list(info.spec.served_names),
        "model_path": info.spec.runner.model_path,
        "policy": info.spec.policy,
        "tp_size": info.spec.tp_size,
        "num_desired_replicas": info.spec.num_replicas,
        "max_model_len": info.facts.max_model_len if info.facts is not None else None,
        "block_size": info.facts.block_size if info.facts is not None else None,
        "num_queued": num_queued,
        "oldest_wait_s": round(oldest_wait_s, 3),
        "replicas": [_replica(r, processes(r.replica_id)) for r in info.replicas],
    }


def _replica(info: ReplicaInfo, processes: list[dict[str, Any]]) -> dict[str, Any]:
    load = info.load
    return {
        "replica_id": info.replica_id,
        "state": info.state.value,
        "is_suspect": info.is_suspect,
        "address": info.address,
        "epoch": info.epoch,
        "tp_size": info.tp_size,
        "pids": [process["pid"] for process in processes],
        "num_blocks": load.num_blocks,
        "num_free_blocks": load.num_free_blocks,
        "num_indexed_blocks": info.num_indexed_blocks,
        "num_running": load.num_running,
        "num_waiting": load.num_waiting,
        "num_reserved": info.num_reserved,
        "backlog_tokens": load.backlog_tokens,
        "steps": load.steps,
        "report_age_s": round(info.report_age_s, 3),
        "restarts": info.num_restarts,
        "reason": info.reason,
    }
