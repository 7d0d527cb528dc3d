"""One HTTP request's dealings with its tenant: let in, charged, settled, counted, logged.

The tenant layer opens an account for each request and surely closes it; the routes say in between
what is asked for and what answers it. So a client that leaves, a failure and a full answer end the
same way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, time
from typing import Protocol, TypeVar

from gateway.errors import APIError, OverloadedError, RateLimitError
from gateway.metrics import GatewayMetrics
from gateway.rate_limits import Header, TenantMeter
from gateway.request_facts import RequestFacts
from gateway.tenants import Tenant
from gateway.usage import Bill, UsageRecord

T = TypeVar("T")

CLIENT_CLOSED = 499  # nginx's number for a client that left before the answer


class Billed(Protocol):
    """A generation, as far as its cost goes."""

    def bill(self) -> Bill: ...

    @property
    def first_token_s(self) -> float | None:
        """After the request's arrival."""
        ...

    @property
    def error(self) -> APIError | None:
        """What broke it off."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answering route was asked for."""

    model: str  # the first of its served names, so that metrics have few label values
    endpoint: str
    is_streamed: bool


class Account:
    """Owned by its request's task. Invariant: what was admitted is left, and what was charged is
    settled, exactly once."""

    __slots__ = (
        *("_asked", "_billed", "_charged", "_error", "_facts", "_is_admitted", "_meter"),
        *("_metrics", "_write", "status", "tenant"),
    )

    def __init__(
        self,
        tenant: Tenant,
        facts: RequestFacts,
        meter: TenantMeter | None,
        metrics: GatewayMetrics,
        write: Callable[[UsageRecord], None] | None,
    ) -> None:
        self.tenant = tenant
        self.status = 0  # of the answer, once it has begun
        self._facts = facts
        self._meter = meter
        self._metrics = metrics
        self._write = write
        self._is_admitted = False
        self._charged = 0
        self._asked: Asked | None = None
        self._billed: Billed | None = None
        self._error: APIError | None = None

    def admit(self) -> None:
        """Raises: RateLimitError."""
        if self._meter is not None:
            self._count_refusal(self._meter.admit)
            self._is_admitted = True

    def ask(self, asked: Asked) -> None:
        self._asked = asked

    def charge(self, num_tokens: int) -> None:
        """Before the work: what it may come to. Raises: RateLimitError."""
        meter = self._meter
        if meter is not None:
            self._charged = self._count_refusal(lambda: meter.charge(num_tokens))

    def answer_with(self, billed: Billed) -> None:
        self._billed = billed

    def fail_with(self, error: APIError) -> None:
        """The error is the answer."""
        self._error = error
        if self._asked is not None and isinstance(error, OverloadedError):
            self._metrics.count_rejection(self._asked.model)

    def headers(self) -> list[Header]:
        return [] if self._meter is None else self._meter.headers()

    def close(self) -> None:
        bill = Bill() if self._billed is None else self._billed.bill()
        if self._meter is not None and self._is_admitted:
            self._meter.leave()
            self._meter.settle(self._charged, bill.num_used)
        if self._asked is not None:
            self._metrics.count_usage(self.tenant.name, self._asked.model, bill)
            if self._write is not None:
                self._write(self._record(self._asked, bill))

    def _count_refusal(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except RateLimitError as error:
            self._metrics.count_refusal(self.tenant.name, error.type)
            raise

    def _record(self, asked: Asked, bill: Bill) -> UsageRecord:
        duration_s = perf_counter() - self._facts.arrival_s
        billed = self._billed
        error = self._error or (None if billed is None else billed.error)
        return UsageRecord(
            time=round(time() - duration_s, 6),
            request_id=self._facts.request_id,
            key=self.tenant.name,
            model=asked.model,
            endpoint=asked.endpoint,
            stream=asked.is_streamed,
            status=self.status or CLIENT_CLOSED,
            error=None if error is None else error.code or error.type,
            prompt_tokens=bill.prompt_tokens,
            cached_tokens=bill.cached_tokens,
            completion_tokens=bill.completion_tokens,
            reasoning_tokens=bill.reasoning_tokens,
            abandoned_tokens=bill.abandoned_tokens,
            finish_reasons=bill.finish_reasons,
            first_token_s=None if billed is None else _rounded(billed.first_token_s),
            duration_s=round(duration_s, 6),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
