"""What a leader tells the cluster: the only view the control plane has of an engine."""

from dataclasses import dataclass, field

from protos.block_hash import BlockHash


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    num_running: int = 0
    num_waiting: int = 0
    backlog_tokens: int = 0  # prompt tokens not yet computed, waiting requests included
    num_blocks: int = 0
    num_free_blocks: int = 0  # evictable cached blocks count as free
    steps: int = 0
    max_num_seqs: int = 0

    @property
    def has_work(self) -> bool:
        return self.num_running + self.num_waiting > 0


# Upper bounds of `EngineCounters.steps_by_tokens`, as vLLM's iteration_tokens_total has them.
STEP_TOKEN_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Monotonic since the replica's start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0  # tokens looked up
    prefix_cache_hits: int = 0  # tokens found
    preemptions: int = 0
    finished_stop: int = 0
    finished_length: int = 0
    finished_abort: int = 0
    finished_error: int = 0
    step_seconds: float = 0.0
    step_tokens: int = 0  # computed in all steps
    steps_by_tokens: tuple[int, ...] = ()  # steps within each bound, and last those above all
    drafts: int = 0  # sequences in steps that carried guesses at their next tokens
    draft_tokens: int = 0  # guesses verified
    accepted_tokens: int = 0  # and right
    accepted_by_position: tuple[int, ...] = ()  # those that came first in their step, second, ...


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    replica_id: str
    epoch: int
    sequence: int  # grows by one a report; a gap asks for a full one
    full: bool  # `stored_blocks` is the whole prefix cache
    load: ReplicaLoad
    stored_blocks: list[BlockHash] = field(default_factory=list)
    removed_blocks: list[BlockHash] = field(default_factory=list)
    admitted_request_ids: list[str] = field(default_factory=list)
    draining: bool = False
    counters: EngineCounters = field(default_factory=EngineCounters)
