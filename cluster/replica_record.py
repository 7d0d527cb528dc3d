"""What the scheduler knows of one replica's current incarnation: its reports and what was placed
since.

The report is the truth; a reservation only bridges the time from a placement to the report that
shows the request. Knows nothing of other replicas, prefixes or policies; the fleet owns and calls
it.
"""

from dataclasses import dataclass

from cluster.policies import CandidateLoad
from cluster.state import ReplicaInfo, ReplicaState
from worker.report import EngineCounters, ReplicaLoad, ReplicaReport

RESERVATION_TTL_S = 5.0  # a gateway that never submits gives its slot back after this
RATE_WEIGHT = 0.3  # of the newest sample in the prefill rate's moving average
MIN_RATE_SAMPLE_S = 0.02  # shorter step times say little about a rate


@dataclass(frozen=True, slots=True)
class Reservation:
    uncached_tokens: int
    expires_t: float


class ReplicaRecord:
    """Invariant: `num_reserved` and `reserved_tokens` are the sums over `_reservations`.

    Owned by the scheduler's event loop. All times come from the caller's clock.
    """

    __slots__ = (
        "_candidate",
        "_last_progress_t",
        "_last_sequence",
        "_prefill_tokens_per_s",
        "_reservations",
        "address",
        "counters",
        "deployment",
        "epoch",
        "last_placed",
        "last_report_t",
        "load",
        "num_reserved",
        "num_restarts",
        "ready_t",
        "reason",
        "replica_id",
        "reserved_tokens",
        "state",
        "tp_size",
    )

    def __init__(
        self,
        replica_id: str,
        deployment: str,
        epoch: int,
        tp_size: int,
        guessed_rate: float,
        now: float,
    ) -> None:
        self.replica_id = replica_id
        self.deployment = deployment
        self.epoch = epoch
        self.tp_size = tp_size
        self.state = ReplicaState.STARTING
        self.address = ""
        self.load = ReplicaLoad()
        self.counters = EngineCounters()
        self.num_restarts = 0
        self.reason = ""
        self.ready_t = now
        self.last_placed = 0
        self.num_reserved = 0
        self.reserved_tokens = 0
        self._reservations: dict[str, list[Reservation]] = {}
        self._prefill_tokens_per_s = guessed_rate
        self.last_report_t = now
        self._last_progress_t = now
        self._last_sequence: int | None = (
            None  # None: block events mean nothing before a full report
        )
        self._candidate: CandidateLoad | None = None

    def set_ready(self, address: str, load: ReplicaLoad, now: float) -> None:
        self.address = address
        if not self.load.num_blocks:  # a report may have come first, and knows more
            self.load = load
        self.state = ReplicaState.READY
        self.ready_t = now
        self._touch(now)

    def _touch(self, now: float) -> None:
        self.last_report_t = now
        self._last_progress_t = now
        self._candidate = None

    def accepts_sequence(self, report: ReplicaReport) -> bool | None:
        """True: the next in order (or a full one); False: a gap, ask for a full one; None: a
        repetition.
        """
        if report.full:
            self._last_sequence = report.sequence
            return True
        if self._last_sequence is not None and report.sequence <= self._last_sequence:
            return None
        if self._last_sequence is None or report.sequence != self._last_sequence + 1:
            self._last_sequence = None
            return False
        self._last_sequence = report.sequence
        return True

    def apply_load(self, report: ReplicaReport, now: float) -> None:
        """Everything of a report but its block events."""
        self._learn_rate(report)
        if report.load.steps != self.load.steps or not report.load.has_work:
            self._last_progress_t = now
        elif not self.load.has_work:
            self._last_progress_t = now  # work has just begun: its first step is still to come
        self.last_report_t = now
        self.load = report.load
        self.counters = report.counters
        for request_id in report.admitted_request_ids:
            self._release(request_id)
        self._candidate = None

    def _learn_rate(self, report: ReplicaReport) -> None:
        seconds = report.counters.step_seconds - self.counters.step_seconds
        computed = (report.counters.prompt_tokens - self.counters.prompt_tokens) - (
            report.counters.prefix_cache_hits - self.counters.prefix_cache_hits
        )
        # Only while prompts were waiting is the speed the engine's and not the clients'.
        if self.load.backlog_tokens and seconds >= MIN_RATE_SAMPLE_S and computed > 0:
            sample = computed / seconds
            self._prefill_tokens_per_s += RATE_WEIGHT * (sample - self._prefill_tokens_per_s)

    def reserve(self, request_id: str, uncached_tokens: int, now: float) -> None:
        reservation = Reservation(uncached_tokens, now + RESERVATION_TTL_S)
        self._reservations.setdefault(request_id, []).append(reservation)
        self.num_reserved += 1
        self.reserved_tokens += uncached_tokens
        self._candidate = None

    def _release(self, request_id: str) -> None:
        """Ids repeat when a request has several choices: each admission ends one reservation."""
        waiting = self._reservations.get(request_id)
        if waiting is None:
            return
        self._subtract(waiting.pop(0))
        if not waiting:
            del self._reservations[request_id]

    def _subtract(self, reservation: Reservation) -> None:
        self.num_reserved -= 1
        self.reserved_tokens -= reservation.uncached_tokens
        self._candidate = None

    def expire_reservations(self, now: float) -> None:
        for request_id, waiting in list(self._reservations.items()):
            while waiting and waiting[0].expires_t <= now:
                self._subtract(waiting.pop(0))
            if not waiting:
                del self._reservations[request_id]

    def report_age_s(self, now: float) -> float:
        return max(0.0, now - self.last_report_t)

    def stalled_s(self, now: float) -> float:
        """How long work has been pending without a step; 0 without work."""
        return now - self._last_progress_t if self.load.has_work else 0.0

    def candidate(self, block_size: int) -> CandidateLoad:
        """Cached: placement asks far more often than anything changes."""
        if self._candidate is None:
            free = self.load.num_free_blocks * block_size - self.reserved_tokens
            self._candidate = CandidateLoad(
                replica_id=self.replica_id,
                num_live=self.load.num_running + self.load.num_waiting + self.num_reserved,
                max_num_seqs=self.load.max_num_seqs,
                backlog_tokens=self.load.backlog_tokens + self.reserved_tokens,
                num_free_tokens=max(0, free),
                prefill_tokens_per_s=self._prefill_tokens_per_s,
                became_ready_t=self.ready_t,
                last_placed=self.last_placed,
            )
        return self._candidate

    def info(self, now: float, report_timeout_s: float, num_indexed_blocks: int) -> ReplicaInfo:
        age_s = self.report_age_s(now)
        return ReplicaInfo(
            replica_id=self.replica_id,
            deployment=self.deployment,
            epoch=self.epoch,
            state=self.state,
            address=self.address,
            tp_size=self.tp_size,
            load=self.load,
            counters=self.counters,
            num_reserved=self.num_reserved,
            num_indexed_blocks=num_indexed_blocks,
            report_age_s=age_s,
            is_suspect=self.state is ReplicaState.READY and age_s > report_timeout_s,
            num_restarts=self.num_restarts,
            reason=self.reason,
        )
