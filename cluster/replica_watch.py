"""Turns successive statuses into lines about what happened to the replicas in between. Pure."""

from typing import Any

from cluster.status import replicas_of


class ReplicaWatch:
    """Holds the last seen (state, restarts) of each replica; used by one launcher."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int]] = {}

    def changes(self, status: dict[str, Any]) -> list[str]:
        lines = []
        current = {}
        for _, replica in replicas_of(status):
            replica_id, now = replica["replica_id"], (replica["state"], replica["restarts"])
            current[replica_id] = now
            before = self._seen.get(replica_id)
            if before is not None and before != now:
                lines.append(_line(replica, before))
        lines += [f"replica {gone} was removed" for gone in self._seen.keys() - current.keys()]
        self._seen = current
        return lines


def _line(replica: dict[str, Any], before: tuple[str, int]) -> str:
    is_well = replica["state"] == "ready"
    reason = "" if is_well or not replica["reason"] else f": {replica['reason']}"
    line = f"replica {replica['replica_id']} was {before[0]} and is {replica['state']}{reason}"
    if replica["restarts"] != before[1]:
        line += f" (restart {replica['restarts']})"
    return line
