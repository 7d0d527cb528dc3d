"""Requests a minute, tokens a minute and requests at once, for each tenant.

The rates are sliding windows: what this minute has seen, and as much of the last minute as still
lies within sixty seconds, taken as evenly spread. Unlike a token bucket that needs no common state
between processes but counters; gateway/shared_counters.py holds them. gateway/account.py asks here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from gateway.errors import RateLimitError
from gateway.shared_counters import REQUESTS, RUNNING, TOKENS, CounterTable, SharedCounters
from gateway.tenants import Limits, Tenant

WINDOW_S = 60.0
_BUSY_RETRY_S = 1.0  # when requests end is not known

Header: TypeAlias = tuple[bytes, bytes]
Rate = Literal["requests", "tokens"]
HEADER_NAMES: dict[Rate, list[bytes]] = {
    kind: [f"x-ratelimit-{what}-{kind}".encode() for what in ("limit", "remaining", "reset")]
    for kind in get_args(Rate)
}
Clock = Callable[[], float]  # the same for all processes of a machine


@dataclass(frozen=True, slots=True)
class Reading:
    """A window at one moment."""

    current: float  # counted this minute
    previous: float  # and in the last
    elapsed: float  # how much of this minute is over, 0 to 1

    @property
    def used(self) -> float:
        return self.current + self.previous * (1 - self.elapsed)

    def wait_s(self, target: float) -> float:
        """Until no more than `target` is used, if nobody adds to it."""
        target = max(0.0, target)
        if self.used <= target:
            return 0.0
        if self.current <= target:
            return ((1 - self.elapsed) - (target - self.current) / self.previous) * WINDOW_S
        return ((1 - self.elapsed) + (1 - target / self.current)) * WINDOW_S


class SlidingWindow:
    """One rate of one tenant, over all processes. Columns from `column` on are its own: the minute
    of the row's last change, what was counted in it, and in the one before it."""

    def __init__(self, table: CounterTable, column: int, clock: Clock = time.monotonic) -> None:
        self._table = table
        self._column = column
        self._clock = clock

    def add(self, amount: float) -> None:
        """Negative: what was counted too much. It goes to this minute, whenever it was counted."""
        own, column = self._table.own, self._column
        minute = _minute(self._clock())
        current, previous = _as_of(minute, *own[column : column + 3].tolist())
        own[column], own[column + 1], own[column + 2] = minute, current + amount, previous

    def read(self) -> Reading:
        now = self._clock()
        minute = _minute(now)
        columns = (self._table.column(self._column + place) for place in range(3))
        rows = [_as_of(minute, *row) for row in zip(*columns, strict=True) if row[0]]
        return Reading(
            max(0.0, sum(current for current, _ in rows)),
            max(0.0, sum(previous for _, previous in rows)),
            now / WINDOW_S % 1.0,
        )


def _minute(now: float) -> int:
    """Never 0: that is a row nobody has written."""
    return 1 + int(now / WINDOW_S)


def _as_of(minute: int, written: float, current: float, previous: float) -> tuple[float, float]:
    """A row's counts of `minute` and the one before; it was last written in an earlier one,
    perhaps."""
    if written == minute:
        return current, previous
    return (0.0, current) if written == minute - 1 else (0.0, 0.0)


class TenantMeter:
    """What one tenant has used. Owned by the event loop; other processes' meters of the same tenant
    share the table."""

    def __init__(self, name: str, table: CounterTable, clock: Clock = time.monotonic) -> None:
        self.limits = Limits()
        self._name = name
        self._table = table
        self._requests = SlidingWindow(table, REQUESTS, clock)
        self._tokens = SlidingWindow(table, TOKENS, clock)

    def admit(self) -> None:
        """One more request, until `leave`. Raises: RateLimitError; then nothing was counted."""
        limits = self.limits
        if limits.max_concurrent is not None:
            running = self._num_running()
            if running >= limits.max_concurrent:
                raise RateLimitError(
                    "concurrency",
                    f"Too many concurrent requests for '{self._name}': Limit "
                    f"{limits.max_concurrent}, Running {running}.",
                    retry_after_s=_BUSY_RETRY_S,
                )
        if limits.requests_per_minute is not None:
            self._check(self._requests, 1, limits.requests_per_minute, "requests")
            self._requests.add(1)
        self._table.own[RUNNING] += 1

    def leave(self) -> None:
        self._table.own[RUNNING] -= 1

    def charge(self, num_tokens: int) -> int:
        """What was counted, for `settle`. Raises: RateLimitError; then nothing was."""
        if self.limits.tokens_per_minute is None:
            return 0
        self._check(self._tokens, num_tokens, self.limits.tokens_per_minute, "tokens")
        self._tokens.add(num_tokens)
        return num_tokens

    def settle(self, charged: int, used: int) -> None:
        """What `charge` took was an estimate; this is the truth."""
        if self.limits.tokens_per_minute is not None and charged != used:
            self._tokens.add(used - charged)

    def headers(self) -> list[Header]:
        """OpenAI's x-ratelimit-*, for the limits there are."""
        limits = self.limits
        rates: tuple[tuple[Rate, int | None, SlidingWindow], ...] = (
            ("requests", limits.requests_per_minute, self._requests),
            ("tokens", limits.tokens_per_minute, self._tokens),
        )
        headers = []
        for kind, limit, window in rates:
            if limit is not None:
                reading = window.read()
                values = (limit, max(0, int(limit - reading.used)), duration(reading.wait_s(0)))
                headers += [
                    (name, str(value).encode())
                    for name, value in zip(HEADER_NAMES[kind], values, strict=True)
                ]
        return headers

    def _num_running(self) -> int:
        return int(sum(self._table.column(RUNNING)))

    def _check(self, window: SlidingWindow, amount: int, limit: int, kind: Rate) -> None:
        reading = window.read()
        if reading.used + amount <= limit:
            return
        where = f"for '{self._name}' on {kind} per min"
        if amount > limit:
            raise RateLimitError(
                kind, f"Request too large {where}: Limit {limit}, Requested {amount}."
            )
        wait_s = reading.wait_s(limit - amount)
        raise RateLimitError(
            kind,
            f"Rate limit reached {where}: Limit {limit}, Used {int(reading.used)}, "
            f"Requested {amount}. Please try again in {duration(wait_s)}.",
            retry_after_s=wait_s,
        )


class TenantMeters:
    """The meters of all tenants that have limits; a tenant keeps its own when the keys are read
    again. Owned by the event loop."""

    def __init__(self, counters: SharedCounters, clock: Clock = time.monotonic) -> None:
        self._counters = counters
        self._clock = clock
        self._meters: dict[str, TenantMeter] = {}

    def of(self, tenant: Tenant) -> TenantMeter | None:
        """None: nothing of the tenant is limited."""
        if tenant.limits.is_unlimited:
            return None
        meter = self._meters.get(tenant.name)
        if meter is None:
            table = self._counters.table(tenant.name)
            meter = self._meters[tenant.name] = TenantMeter(tenant.name, table, self._clock)
        meter.limits = tenant.limits
        return meter


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1e3))}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
