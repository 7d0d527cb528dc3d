"""The gateway's connections to all leaders: opened as the cluster snapshot shows a replica ready,
closed when it says the replica is gone. The router submits through them; the view judges health by
their status.
"""

import asyncio

from gateway.cluster_snapshot import ClusterSnapshot, Replica, ReplicaAddress
from gateway.worker_connection import ConnectionTimings, PeerStatus, WorkerConnection

_SERVING = ("ready", "draining")
_FENCED = ("hung", "dead")


class WorkerPool:
    """Invariant: at most one connection per replica incarnation. Owned by the event loop."""

    def __init__(self, gateway_id: str, timings: ConnectionTimings | None = None) -> None:
        self._gateway_id = gateway_id
        self._timings = timings or ConnectionTimings()
        self._connections: dict[tuple[str, int], WorkerConnection] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def num_live(self) -> int:
        """Requests in the tables of all connections."""
        return sum(connection.num_live for connection in self._connections.values())

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    async def close(self) -> None:
        for key in list(self._connections):
            self._drop(key)
        await asyncio.gather(*self._closing)

    def connection(self, leader: ReplicaAddress) -> WorkerConnection:
        """The existing one, or a new one that is just being opened."""
        key = (leader.replica_id, leader.epoch)
        connection = self._connections.get(key)
        if connection is None:
            connection = WorkerConnection(leader, self._gateway_id, self._timings)
            connection.start()
            self._connections[key] = connection
        return connection

    def find(self, leader: ReplicaAddress) -> WorkerConnection | None:
        return self._connections.get((leader.replica_id, leader.epoch))

    def status(self, leader: ReplicaAddress) -> PeerStatus | None:
        """None: no connection yet."""
        connection = self.find(leader)
        return None if connection is None else connection.status()

    def follow(self, snapshot: ClusterSnapshot) -> None:
        known = {replica.replica_id: replica for replica in snapshot.replicas()}
        for replica in known.values():
            if replica.state in _SERVING:
                self.connection(replica.leader)
        for key, connection in list(self._connections.items()):
            if _is_over(connection, known.get(key[0])):
                self._drop(key)

    def _drop(self, key: tuple[str, int]) -> None:
        task = asyncio.create_task(self._connections.pop(key).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _is_over(connection: WorkerConnection, replica: Replica | None) -> bool:
    """Whether the cluster's word ends this connection. Silence about a replica does not while it
    has requests: live streams must survive a scheduler that forgot them."""
    if replica is None:
        return connection.num_live == 0 and connection.status().phase != "connecting"
    if replica.leader.epoch != connection.leader.epoch:
        # A placement may be ahead of the snapshot, so only an older incarnation is over.
        return replica.leader.epoch > connection.leader.epoch
    return replica.state in _FENCED
