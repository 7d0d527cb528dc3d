"""All that tenants need for as long as the gateway runs: keys, meters, the usage log.

`create_app` builds one; the tenant layer opens each request's account here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.account import Account
from gateway.auth import KeyRing
from gateway.background import in_background
from gateway.config import GatewayConfig
from gateway.metrics import GatewayMetrics
from gateway.rate_limits import TenantMeters
from gateway.request_facts import RequestFacts
from gateway.shared_counters import SharedCounters
from gateway.tenants import Tenant
from gateway.usage import UsageLog


class Tenancy:
    """Owned by the event loop."""

    def __init__(self, config: GatewayConfig, metrics: GatewayMetrics) -> None:
        """Raises: KeyFileError, ValueError for a key that is none, OSError for files that cannot be
        used."""
        self.keys = KeyRing(config.api_keys, config.api_keys_file, config.probe_key)
        self._check_interval_s = config.keys_check_interval_s
        self._metrics = metrics
        self._counters = SharedCounters(config.shared_folder)
        self._meters = TenantMeters(self._counters)
        self._usage: UsageLog | None = None
        if config.usage_log is not None:
            self._usage = UsageLog(config.usage_log, metrics.usage_records_lost.inc)

    def open_account(self, tenant: Tenant, facts: RequestFacts) -> Account:
        return Account(
            tenant,
            facts,
            self._meters.of(tenant),
            self._metrics,
            None if self._usage is None else self._usage.write,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follows the keys' file; at the end, what was used is on disk."""
        try:
            async with in_background(self.keys.keep_current(self._check_interval_s), "api-keys"):
                yield
        finally:
            if self._usage is not None:
                await asyncio.to_thread(self._usage.close)
            self._counters.close()
