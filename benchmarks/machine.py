"""What machine this is, for whoever reads results later."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")


def machine_facts(*packages: str) -> dict[str, Any]:
    """As a report begins with; `packages`: those whose versions matter to it."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """The processor's own name where the system tells it."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
