"""The Server-Timing header of an answer: https://www.w3.org/TR/server-timing/.

A whole answer tells everything; a stream what is known with its first token.
"""

from gateway.tokens import Timing


def server_timing(timing: Timing, first_token_s: float | None, total_s: float | None = None) -> str:
    """Durations in milliseconds. `total_s`: of a whole answer; None: it is only beginning."""
    spans = {
        "placement": timing.placement_s,
        "queue": timing.queue_s,
        "prefill": timing.prefill_s,
    }
    if first_token_s is not None:
        spans["first-token"] = first_token_s
    if total_s is not None:
        spans |= {"decode": timing.decode_s, "total": total_s}
    return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in spans.items())
