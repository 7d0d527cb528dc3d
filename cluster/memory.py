"""Where the memory of one shard will go, told before it is loaded; `cluster.serve` shows it."""

from typing import Literal

from cluster.cli_errors import CommandError
from cluster.config import DeploymentSpec
from cluster.hardware import free_gpu_bytes
from worker.errors import ShoalError

UNKNOWN = "memory: each shard plans its own when it loads"


def memory_plan(spec: DeploymentSpec, is_local: bool) -> str:
    """In a joined cluster the shards run on machines this one cannot ask.

    Raises: CommandError when the model cannot be read, or does not fit.
    """
    from worker.memory_plan import host_available_bytes, plan_memory
    from worker.models.config import load_model_config

    device: Literal["cpu", "cuda"] = "cuda" if spec.runner.device == "cuda" else "cpu"
    try:
        model = load_model_config(spec.runner.model_path)
        available = host_available_bytes() if device == "cpu" else free_gpu_bytes()
        if not is_local or available is None:
            return UNKNOWN
        plan = plan_memory(model, spec.runner, spec.tp_size, device, available)
    except ShoalError as e:
        raise CommandError(str(e)) from e
    return "\n".join(plan.describe())
