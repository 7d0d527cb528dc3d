"""Who is set back when blocks or slots are short: pure choices over the running requests.

A request set back loses its slot and blocks and is computed again later, as far as the prefix cache
has not kept it. Called by the BatchScheduler, which does it.
"""

from collections.abc import Sequence

from worker.engine.kv_cache_manager import KVCacheManager
from worker.engine.request import Request


def least_costly(running: Sequence[Request]) -> Request:
    """The least urgent; of equal ones the one with the fewest output tokens, then the latest."""
    return max(running, key=_cost_order)


def in_the_way(
    waiting: Request,
    running: Sequence[Request],
    kv_cache: KVCacheManager,
    has_slot: bool,
    num_kept_free: int,
) -> list[Request]:
    """Less urgent requests that must go so that `waiting` can be admitted; none if it can be as it
    is, or not even without all of them.
    """
    less_urgent = [request for request in running if request.priority > waiting.priority]
    if not less_urgent:
        return []
    num_missing = kv_cache.num_missing(waiting, num_kept_free)
    if has_slot and num_missing <= 0:
        return []
    chosen: list[Request] = []
    for request in sorted(less_urgent, key=_cost_order, reverse=True):
        chosen.append(request)
        num_missing -= kv_cache.num_own(request)
        if num_missing <= 0:
            return chosen
    return []


def _cost_order(request: Request) -> tuple[int, int, int]:
    priority, sequence = request.order
    return priority, -request.num_output_tokens, sequence
