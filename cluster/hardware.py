"""What this machine has, told without loading torch: asked before anything is started."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

NVIDIA_PROC = Path("/proc/driver/nvidia/gpus")
QUERY = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
QUERY_TIMEOUT_S = 10.0


def count_gpus(env: Mapping[str, str] = os.environ, nvidia_proc: Path = NVIDIA_PROC) -> int:
    """NVIDIA GPUs that processes started from here will see."""
    present = len(list(nvidia_proc.iterdir())) if nvidia_proc.is_dir() else 0
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    chosen = [part for part in visible.split(",") if part.strip() not in ("", "-1")]
    return min(present, len(chosen))


def free_gpu_bytes(command: tuple[str, ...] = QUERY) -> int | None:
    """Of the fullest GPU, which bounds every rank; None where the driver does not say."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True
        )
        return min(int(line) for line in run.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
