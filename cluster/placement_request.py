"""What a gateway asks of placement, and the answers: plain data between the servicer, the queue and
the fleet.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    key: Hashable  # the asker's own name for it, unique among what waits
    request_id: str  # the one the gateway will submit under
    num_prompt_tokens: int
    packed_hashes: bytes = b""  # 16 bytes a full prompt block
    max_tokens: int = 0
    priority: int = 0  # lower is earlier
    tenant: str = ""
    timeout_s: float | None = None  # None: as long as it takes
    excluded: frozenset[str] = frozenset()  # replicas that failed this request before


class RefusalReason(Enum):
    UNKNOWN_MODEL = "unknown_model"
    INVALID = "invalid"
    FULL = "full"
    HOPELESS = "hopeless"  # its deadline would pass in the queue
    EXPIRED = "expired"  # its deadline did
    UNAVAILABLE = "unavailable"  # no replica can serve, or the cluster is going down


@dataclass(frozen=True, slots=True)
class Placed:
    key: Hashable
    replica_id: str
    num_cached_blocks: int  # expected
    queue_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    key: Hashable
    reason: RefusalReason
    message: str
    retry_after_s: float = 0.0  # 0: no advice
    field: str = ""


Decision = Placed | Refused
