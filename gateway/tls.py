"""TLS of the HTTP port: its files, and certificates that are renewed while the gateway runs."""

import argparse
import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from gateway.background import in_background

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    key: str
    certificate: str
    authorities: str | None  # who signs client certificates
    client_certificates: ssl.VerifyMode

    def uvicorn_settings(self) -> dict[str, Any]:
        return {
            "ssl_keyfile": self.key,
            "ssl_certfile": self.certificate,
            "ssl_ca_certs": self.authorities,
            "ssl_cert_reqs": self.client_certificates,
        }

    def stamp(self) -> tuple[int, ...]:
        """Changes when a file is replaced, also behind a symbolic link."""
        statuses = [os.stat(path) for path in (self.key, self.certificate)]
        return tuple(part for one in statuses for part in (one.st_ino, one.st_mtime_ns))


def tls_files(args: argparse.Namespace) -> TlsFiles | None:
    """None: plain HTTP."""
    if args.ssl_certfile is None:
        return None
    mode = ssl.VerifyMode(args.ssl_cert_reqs)
    return TlsFiles(args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs, mode)


@asynccontextmanager
async def following(
    files: TlsFiles | None, config: uvicorn.Config, interval_s: float
) -> AsyncIterator[None]:
    """New connections get the newest certificate; those there are keep theirs."""
    if files is None:
        yield
        return
    async with in_background(_follow(files, config, interval_s), "certificates"):
        yield


async def _follow(files: TlsFiles, config: uvicorn.Config, interval_s: float) -> None:
    seen: tuple[int, ...] | None = await asyncio.to_thread(files.stamp)
    while True:
        await asyncio.sleep(interval_s)
        try:
            stamp = await asyncio.to_thread(files.stamp)
            if stamp != seen and config.ssl is not None:
                await asyncio.to_thread(config.ssl.load_cert_chain, files.certificate, files.key)
                log.info("certificate read path=%s", files.certificate)
            seen = stamp
        except (OSError, ssl.SSLError) as error:
            # Between the two files' replacement they do not fit: the next look finds both.
            log.warning("the certificate stays as it was: %s", error)
