"""How the ranks of a replica find each other: a TCPStore on the leader, then a group and a channel.

The leader's owner keeps the store alive as long as the replica; everything else is published in it,
no port or name is fixed. Called by the shard while it starts.
"""

import logging
import mmap
import os
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import TCPStore

from worker.errors import ShardError
from worker.parallel import futex
from worker.parallel.group import DistributedGroup, SingleGroup, TPGroup
from worker.parallel.shm_group import SharedMemoryGroup, attach_segment, create_segment
from worker.parallel.step_channel import FollowerChannel, LeaderChannel

logger = logging.getLogger(__name__)

_HOST_KEY = "shoal/host/{rank}"
_ATTACHED_KEY = "shoal/attached/{rank}"
_SEGMENT_KEY = "shoal/segment"
_CHANNEL_KEY = "shoal/channel"


def open_rendezvous(host: str) -> tuple[TCPStore, str]:
    """On the leader: a store on a free port, and its address host:port for all ranks.

    `host` is how the other ranks reach this machine.
    """
    store = TCPStore(host, 0, None, is_master=True, wait_for_workers=False)
    return store, f"{host}:{store.port}"


def join_rendezvous(rendezvous: str, timeout_s: float = 60.0) -> TCPStore:
    """Raises: ShardError when the leader does not answer."""
    host, _, port = rendezvous.rpartition(":")
    timeout = timedelta(seconds=timeout_s)
    try:
        return TCPStore(host, int(port), None, is_master=False, timeout=timeout)
    except RuntimeError as error:
        raise ShardError(f"no rendezvous at {rendezvous}: {error}") from error


def connect_group(
    rank: int, size: int, rendezvous: str, device: torch.device, timeout_s: float = 60.0
) -> TPGroup:
    """Collective: every rank of the replica calls it. Shared memory for CPU ranks on one host, else
    NCCL or gloo.

    Raises: ShardError when not all ranks come within `timeout_s`.
    """
    if size == 1:
        return SingleGroup()
    store = join_rendezvous(rendezvous, timeout_s)
    try:
        group = _try_shared_memory(rank, size, store, timeout_s) if device.type == "cpu" else None
        return group or DistributedGroup(rank, size, store, device, timeout_s)
    except RuntimeError as error:  # the store's own errors
        raise ShardError(f"rank {rank} could not join its group: {error}") from error


def open_channel(size: int, rendezvous: str, timeout_s: float = 60.0) -> LeaderChannel:
    """On the leader: the step channel to `size - 1` followers, published for `join_channel`."""
    host = rendezvous.rpartition(":")[0]
    channel = LeaderChannel(size - 1, host, timeout_s)
    join_rendezvous(rendezvous, timeout_s).set(_CHANNEL_KEY, channel.address)
    return channel


def join_channel(rank: int, rendezvous: str, timeout_s: float = 60.0) -> FollowerChannel:
    """On a follower. Raises: ShardError when the leader has opened none within `timeout_s`."""
    store = join_rendezvous(rendezvous, timeout_s)
    try:
        address = store.get(_CHANNEL_KEY).decode()
    except RuntimeError as error:
        raise ShardError(f"rank {rank} found no step channel: {error}") from error
    return FollowerChannel(address, rank, timeout_s)


def host_identity() -> str:
    """Equal for processes that can share memory and watch each other; "" where unsupported."""
    if not futex.IS_SUPPORTED:
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}/{os.getuid()}"
    except OSError:
        return ""


def _try_shared_memory(
    rank: int, size: int, store: TCPStore, timeout_s: float
) -> SharedMemoryGroup | None:
    """All ranks come to the same verdict: None unless every one of them is attached."""
    hosts, pids = _meet_hosts(rank, size, store)
    if len(hosts) > 1 or "" in hosts:
        return None
    fd = -1
    group = None
    try:
        segment, fd = _share_segment(rank, size, store)
        group = SharedMemoryGroup(rank, segment, pids, timeout_s)
    except OSError as error:  # all ranks hear of it below and take gloo together
        logger.warning("rank=%d cannot share memory with its group: %s", rank, error)
    store.set(_ATTACHED_KEY.format(rank=rank), "1" if group else "")
    verdicts = [store.get(_ATTACHED_KEY.format(rank=r)) for r in range(size)]
    if fd >= 0:
        os.close(fd)
    if group is not None and not all(verdicts):
        group.close()
        return None
    return group


def _meet_hosts(rank: int, size: int, store: TCPStore) -> tuple[set[str], list[int]]:
    """The hosts that the ranks are on, and their process ids."""
    store.set(_HOST_KEY.format(rank=rank), f"{host_identity()} {os.getpid()}")
    entries = [store.get(_HOST_KEY.format(rank=r)).decode() for r in range(size)]
    pairs = [entry.rpartition(" ") for entry in entries]
    return {host for host, _, _ in pairs}, [int(pid) for _, _, pid in pairs]


def _share_segment(rank: int, size: int, store: TCPStore) -> tuple[mmap.mmap, int]:
    """The group's segment, on rank 0 with the descriptor (else -1) that the others attach through.

    Raises: OSError, on every rank when rank 0 has no segment.
    """
    if rank > 0:
        path = store.get(_SEGMENT_KEY).decode()
        if not path:
            raise OSError("rank 0 has no segment")
        return attach_segment(path, size), -1
    try:
        segment, fd = create_segment(size)
    except OSError:
        store.set(_SEGMENT_KEY, "")
        raise
    store.set(_SEGMENT_KEY, f"/proc/{os.getpid()}/fd/{fd}")
    return segment, fd
