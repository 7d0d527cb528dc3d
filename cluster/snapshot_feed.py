"""The latest snapshot of the cluster for everyone who watches: built once, read by all, never
queued.

A slow watcher skips snapshots instead of falling behind. The control loop publishes, the servicer
reads.
"""

import asyncio

from protos import scheduler_pb2


class SnapshotFeed:
    """Holds one snapshot. Owned by the scheduler's event loop."""

    def __init__(self) -> None:
        self._latest: scheduler_pb2.ClusterSnapshot | None = None
        self._changed = asyncio.Event()

    def publish(self, snapshot: scheduler_pb2.ClusterSnapshot) -> None:
        self._latest = snapshot
        # Whoever waits holds the old event; whoever comes next waits for the next snapshot.
        self._changed.set()
        self._changed = asyncio.Event()

    async def next(self, after_version: int) -> scheduler_pb2.ClusterSnapshot:
        """The latest snapshot newer than `after_version`; the publisher's period bounds the
        wait.
        """
        while self._latest is None or self._latest.version <= after_version:
            await self._changed.wait()
        return self._latest
