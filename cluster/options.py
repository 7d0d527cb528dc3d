"""What `shoal serve` was asked for, and the deployment it describes. Plain data.

Knows nothing of Ray or processes: `cluster.cli` makes it from flags, `cluster.serve` acts on it.
"""

import argparse
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.config import DeploymentSpec, PolicyName
from cluster.edge_arguments import edge_options
from cluster.edge_options import EdgeOptions
from worker.config import RunnerConfig, SpeculationConfig

DEMO_NAME = "shoal-demo"
DEMO_TP_SIZE = 2  # so that the demo shows a replica of two tensor-parallel shards
DTYPE_ALIASES = {"float": "float32", "half": "float16"}


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Immutable. `runner.model_path` is empty: the model is resolved later."""

    model: str | None
    served_names: tuple[str, ...]
    revision: str | None
    download_dir: str | None
    hf_token: str | None
    runner: RunnerConfig
    tp_size: int | None  # None: 1, or as many as the demo shows
    num_replicas: int
    enable_prefix_caching: bool
    max_logprobs: int
    target_itl_ms: float | None
    speculation: SpeculationConfig | None
    max_queued: int
    policy: PolicyName
    host: str
    port: int
    root_path: str
    api_keys: tuple[str, ...]
    probe_key: str  # the launcher's own, where keys are asked for; else ""
    edge: EdgeOptions
    uvicorn_log_level: str
    shutdown_timeout_s: float
    num_gateways: int
    address: str | None  # of a Ray cluster to join; None: start one here
    scheduler_port: int  # 0: any free one
    metrics_port: int | None  # of the scheduler; 0: any free one, None: no endpoint
    detach: bool
    start_timeout_s: float

    def deployment(
        self, model_path: str, names: tuple[str, ...], device: str, tp_size: int
    ) -> DeploymentSpec:
        """The specification for a model that has been found, on the device that is there."""
        runner = {name: getattr(self.runner, name) for name in RunnerConfig.__slots__}
        return DeploymentSpec(
            name=names[0],
            served_names=names,
            runner=RunnerConfig(**{**runner, "model_path": model_path, "device": device}),
            tp_size=tp_size,
            num_replicas=self.num_replicas,
            gpus_per_rank=1.0 if device == "cuda" else 0.0,
            enable_prefix_caching=self.enable_prefix_caching,
            max_logprobs=self.max_logprobs,
            target_itl_ms=self.target_itl_ms,
            speculation=self.speculation,
            policy=self.policy,
            max_queued=self.max_queued,
            created_unix_s=int(time.time()),
        )


def serve_options(args: argparse.Namespace, env: Mapping[str, str]) -> ServeOptions:
    """Raises: ValueError when flags contradict each other."""
    if args.detach and (args.address is None or args.gateways):
        raise ValueError(
            "--detach needs --address and --gateways 0: a cluster that stays and gateways elsewhere"
        )
    api_keys = _api_keys(args.api_key, env)
    return ServeOptions(
        model=args.model,
        served_names=tuple(dict.fromkeys(args.served_model_name)),
        revision=args.revision,
        download_dir=args.download_dir,
        hf_token=args.hf_token,
        runner=_runner(args),
        tp_size=args.tensor_parallel_size,
        num_replicas=args.replicas,
        enable_prefix_caching=args.enable_prefix_caching,
        max_logprobs=args.max_logprobs,
        target_itl_ms=args.target_itl_ms,
        speculation=args.speculative_config,
        max_queued=args.max_num_queued_reqs,
        policy=args.routing_policy,
        host=args.host,
        port=args.port,
        root_path=args.root_path,
        api_keys=api_keys,
        probe_key=secrets.token_urlsafe(32) if api_keys or args.api_keys_file else "",
        edge=edge_options(args),
        uvicorn_log_level=args.uvicorn_log_level,
        shutdown_timeout_s=args.shutdown_timeout,
        num_gateways=args.gateways,
        address=args.address,
        scheduler_port=args.scheduler_port,
        metrics_port=args.metrics_port,
        detach=args.detach,
        start_timeout_s=args.start_timeout,
    )


def _runner(args: argparse.Namespace) -> RunnerConfig:
    return RunnerConfig(
        model_path="",
        dtype=DTYPE_ALIASES.get(args.dtype, args.dtype),
        device=args.device,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        block_size=args.block_size,
        num_blocks=args.num_gpu_blocks_override,
        kv_cache_bytes=args.kv_cache_memory_bytes,
        memory_utilization=args.gpu_memory_utilization,
        attention_backend=args.attention_backend,
        enable_expert_parallel=args.enable_expert_parallel,
        num_threads=args.num_threads,
        native_kernels=args.native_kernels,
        enforce_eager=args.enforce_eager,
        async_scheduling=args.async_scheduling,
    )


def _api_keys(given: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """Flags and both environment variables; each may hold several keys, separated by commas."""
    sources = [*given, env.get("SHOAL_API_KEY", ""), env.get("VLLM_API_KEY", "")]
    keys = (key.strip() for source in sources for key in source.split(","))
    return tuple(dict.fromkeys(key for key in keys if key))
