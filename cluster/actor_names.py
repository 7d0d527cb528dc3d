"""How the Ray objects of a replica's incarnation are called: the whole of what a restarted
scheduler reads back from Ray. Pure.

An actor is `shard/<deployment>/<replica>/<epoch>/<rank>`, its placement group the same without the
rank. The epoch keeps a new incarnation's names clear of an old one's that is still dying.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b

PREFIX = "shard/"


@dataclass(frozen=True, slots=True, order=True)
class IncarnationName:
    deployment: str  # may hold slashes
    replica_id: str  # holds none
    epoch: int

    @property
    def group(self) -> str:
        return f"{PREFIX}{self.deployment}/{self.replica_id}/{self.epoch}"

    def actor(self, rank: int) -> str:
        return f"{self.group}/{rank}"


def parse_group(name: str) -> IncarnationName | None:
    if not name.startswith(PREFIX):
        return None
    parts = name.removeprefix(PREFIX).rsplit("/", 2)
    if len(parts) != 3 or not parts[2].isdecimal():
        return None
    return IncarnationName(parts[0], parts[1], int(parts[2]))


def parse_actor(name: str) -> tuple[IncarnationName, int] | None:
    group, _, rank = name.rpartition("/")
    incarnation = parse_group(group)
    if incarnation is None or not rank.isdecimal():
        return None
    return incarnation, int(rank)


def replica_id(deployment: str, index: int) -> str:
    """Readable, without slashes, and different for different deployments."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", deployment)
    if slug != deployment:
        slug += "-" + blake2b(deployment.encode(), digest_size=2).hexdigest()
    return f"{slug}-{index}"
