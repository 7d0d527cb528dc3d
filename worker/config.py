"""Frozen settings of one replica, resolved once by whoever starts it and passed on by part.

Plain data: no torch, no Ray, so that the cluster's pure core can hold and compare it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """What a rank needs to load a model and size its KV cache. The same on every rank."""

    model_path: str
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    device: str = "auto"  # auto | cpu | cuda
    max_model_len: int | None = None  # tokens; None: the model's own limit
    max_num_seqs: int = 256  # sequences in one step
    max_num_batched_tokens: int = 2048  # tokens in one step
    block_size: int = 16  # tokens a KV block
    num_blocks: int | None = None  # overrides the profiled count
    kv_cache_bytes: int | None = None  # per rank; overrides memory_utilization
    memory_utilization: float = 0.9  # fraction of device memory that weights and cache may take
    attention_backend: str = "auto"
    enable_expert_parallel: bool = False  # ranks have experts whole, not a slice of every one
    num_threads: int | None = None  # CPU threads of one rank; None: cores / ranks on the host
    native_kernels: bool = True  # on CPUs that have them; else and elsewhere torch computes
    enforce_eager: bool = False  # on GPUs: no step is captured as a CUDA graph
    async_scheduling: bool | None = None  # a step is planned while another runs; None: on GPUs

    @property
    def wants_native_kernels(self) -> bool:
        """Who chooses a backend of attention gets it: the kernels have their own."""
        return self.native_kernels and self.attention_backend == "auto"


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """Guesses at the next tokens from what followed the last ones before (n-grams)."""

    num_speculative_tokens: int = 8  # a sequence and step, at most
    prompt_lookup_max: int = 5  # tokens that must have occurred before; longer is not looked for
    prompt_lookup_min: int = 3


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What a leader's engine plans with. Resolved: no field means "find out"."""

    num_blocks: int  # for each group of layers, in one pool: see `windows`
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    # Of each group of layers that have KV blocks of their own, widest first: tokens that one sees
    # at most; None: all.
    windows: tuple[int | None, ...] = (None,)
    enable_prefix_caching: bool = True
    max_logprobs: int = 20
    max_num_waiting: int = 4096  # beyond this a submit is refused
    # between two tokens of a stream while prompts are computed; None: to suit the model, 0: none
    target_itl_ms: float | None = None
    speculation: SpeculationConfig | None = None  # None: off


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """One rank of one incarnation of one replica."""

    deployment: str
    replica_id: str
    epoch: int  # grows with every incarnation: the fencing token
    rank: int
    tp_size: int
    rendezvous: str  # host:port of the TCPStore on rank 0; unused when tp_size is 1
    runner: RunnerConfig
    served_names: tuple[str, ...]
    enable_prefix_caching: bool = True
    max_logprobs: int = 20
    target_itl_ms: float | None = None
    speculation: SpeculationConfig | None = None
    # the deployment's own spec, opaque here: what a restarted scheduler reads back
    deployment_json: str = ""
