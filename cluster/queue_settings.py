"""How a placement queue behaves: its limits in requests, tokens and seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueSettings:
    max_queued: int = 4096
    max_batched_tokens: int = 2048  # a replica's step; it always gets this much backlog
    # A replica gets work for this long, so that it does not run dry before its next report is acted
    # on.
    backlog_s: float = 0.4
    # Extra requests per `max_num_seqs`, for the slots that come free between two reports.
    slot_slack: float = 1 / 16
    window: int = 16  # oldest requests of a tenant that compete for a free replica
    aging: float = 0.05  # seconds of work that one second of waiting makes up for
    overdue_s: float = 10.0  # from then on: first come, first served
    max_hold_s: float = 2.0  # for a busy replica with the prefix
    exclusion_s: float = 2.5  # after it, a replica that failed a request is better than none
    unavailable_s: float = 30.0  # without any replica
    hopeless_factor: float = 1.5  # predicted wait over deadline; the prediction is rough
