"""How much memory a rank needs and how many KV blocks it can have, known before anything is loaded.

Pure arithmetic over the model's description, the checkpoint's headers and the bytes a device has
free; no torch. The command line prints it, the runner allocates by it, an operator reads it when it
does not fit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worker.config import RunnerConfig
from worker.engine.kv_footprint import KVFootprint
from worker.errors import InvalidRequest, MemoryPlanError
from worker.kv_groups import KVGroups, group_layers
from worker.layers.shard import divide_up, split_heads
from worker.models.checkpoint import read_tensor_entries
from worker.models.config import ModelConfig
from worker.models.deployed_spec import deployed_spec
from worker.models.spec import ModelSpec
from worker.native.build import can_have_library
from worker.weight_count import weight_elements

DeviceType = Literal["cpu", "cuda"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# A CPU's cache takes memory that the host may want for other things: bounded, unless sized
# explicitly.
_CPU_CACHE_BYTES = 4 << 30
# Without matrix units for bf16, fp32 products are as fast or faster; up to here its size does no
# harm.
_CPU_FLOAT32_BYTES = 2 << 30
_GATHERED_TOKENS = 1 << 18  # history that attention copies at once
_MAX_SCORES = 1 << 24  # scores that attention holds at once where no fused operator computes it
_SCORES_COPIES = 4  # fp32: as computed, with sinks, as weights, as typed
_LOGITS_ROWS = 256  # rows that go through the head at once, beside the sampled ones
_LOGITS_COPIES = 3  # fp32: as computed, as modified, as probabilities
_CPUINFO = Path("/proc/cpuinfo")
_MIN_FITTED_TOKENS = 256  # a context shorter than this is refused rather than fitted


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """One rank's memory. Immutable."""

    model: str
    device: DeviceType
    dtype: str
    tp_size: int
    budget_bytes: int  # what this rank may take in all
    weight_bytes: int
    activation_bytes: int
    block_bytes: int  # of one block for each group of layers
    block_size: int  # tokens
    num_blocks: int  # for each group, in one pool
    bound: str  # what limits the number of blocks
    max_model_len: int  # tokens; shorter than the model's where no more fits
    groups: KVGroups

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def footprint(self) -> KVFootprint:
        return KVFootprint(self.block_size, self.groups.windows)

    @property
    def max_concurrency(self) -> float:
        """Sequences of the greatest length that fit at once."""
        held = self.footprint.num_held(self.max_model_len, chunk=1)
        return self.num_blocks * self.groups.num_groups / held

    @property
    def max_tokens(self) -> int:
        """Of all sequences together, when they are of the greatest length."""
        if self.groups.windows == (None,):
            return self.num_blocks * self.block_size
        return int(self.max_concurrency * self.max_model_len)

    def describe(self) -> list[str]:
        """Lines for an operator."""
        ranks = f"{self.tp_size} rank{'s' * (self.tp_size > 1)}"
        return [
            f"memory plan of {self.model}: {self.dtype} on {self.device}, {ranks}; per rank:",
            f"  may use      {_size(self.budget_bytes)}",
            f"  weights      {_size(self.weight_bytes)}",
            f"  activations  {_size(self.activation_bytes)}",
            f"  KV cache     {_size(self.kv_cache_bytes)} = {self.num_blocks} blocks of "
            f"{self.block_size} tokens ({_size(self.block_bytes).strip()} each), by {self.bound}",
            f"  room for     {self.max_tokens} tokens = {self.max_concurrency:.1f} sequences of "
            f"{self.max_model_len} tokens{self._what_is_kept()}",
        ]

    def _what_is_kept(self) -> str:
        layers_by_window: dict[int | None, int] = {}
        for window, layers in zip(self.groups.windows, self.groups.layers, strict=True):
            layers_by_window[window] = layers_by_window.get(window, 0) + len(layers)
        num_layers = sum(layers_by_window.values())
        kept = [
            f"the last {window}" + (f" in {n} of {num_layers} layers" if n < num_layers else "")
            for window, n in layers_by_window.items()
            if window is not None
        ]
        return f", which keep {', '.join(kept)}" if kept else ""


def resolve_max_model_len(model: ModelConfig, config: RunnerConfig) -> int:
    """Raises: InvalidRequest when more is asked for than the model can do."""
    if config.max_model_len is None:
        return model.max_position
    if not 1 <= config.max_model_len <= model.max_extended_position:
        raise InvalidRequest(
            f"max_model_len={config.max_model_len} is not within 1 and the model's "
            f"{model.max_extended_position} tokens",
            "max_model_len",
        )
    return config.max_model_len


def resolve_dtype(model: ModelConfig, config: RunnerConfig, device: DeviceType) -> str:
    """An explicit type wins; else the checkpoint's, or fp32: small models where torch computes, on
    CPUs without AMX, whose 16-bit products are slow.
    """
    if config.dtype != "auto":
        if config.dtype not in DTYPE_BYTES:
            raise InvalidRequest(f"dtype {config.dtype!r} is not supported", "dtype")
        return config.dtype
    is_native = config.wants_native_kernels and can_have_library()
    if device == "cpu" and not _has_amx() and not (is_native and model.torch_dtype == "bfloat16"):
        elements = sum(
            e.num_elements for e in read_tensor_entries(model.path, model.quantization).values()
        )
        if elements * DTYPE_BYTES["float32"] <= _CPU_FLOAT32_BYTES:
            return "float32"
    return model.torch_dtype


def plan_memory(
    model: ModelConfig,
    config: RunnerConfig,
    tp_size: int,
    device: DeviceType,
    available_bytes: int,
) -> MemoryPlan:
    """`available_bytes`: free before loading, on the host (all ranks) or on this rank's card.

    Raises: MemoryPlanError when weights and one sequence of the greatest length do not fit;
    InvalidRequest when the configuration asks for what the model cannot do.
    """
    try:
        num_heads, num_kv_heads = split_heads(model.num_heads, model.num_kv_heads, tp_size)
    except ValueError as error:
        raise InvalidRequest(f"{model.path}: {error}", "tensor_parallel_size") from None
    spec = deployed_spec(model, config, tp_size)
    max_len = resolve_max_model_len(model, config)
    dtype = resolve_dtype(model, config, device)
    item = DTYPE_BYTES[dtype]
    num_tensors = 2 if spec.mla is None else 1  # keys and values, or latents
    groups = group_layers(spec.windows, max_len)
    token_bytes = num_tensors * groups.num_slots * num_kv_heads * model.head_dim * item
    block_bytes = token_bytes * config.block_size
    weight_bytes = weight_elements(model, spec, tp_size, num_kv_heads) * item
    activation_bytes = _activation_bytes(
        spec, config, tp_size, num_heads, num_kv_heads, item, max_len
    )
    share = available_bytes // (tp_size if device == "cpu" else 1)
    left = int(share * config.memory_utilization) - weight_bytes - activation_bytes
    footprint = KVFootprint(config.block_size, groups.windows)
    needed = divide_up(
        config.max_num_seqs * footprint.num_held(max_len, config.max_num_batched_tokens),
        groups.num_groups,
    )
    num_blocks, bound = _num_blocks(config, tp_size, device, needed, block_bytes, left)
    plan = MemoryPlan(
        model=model.path,
        device=device,
        dtype=dtype,
        tp_size=tp_size,
        budget_bytes=int(share * config.memory_utilization),
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        block_bytes=block_bytes,
        block_size=config.block_size,
        num_blocks=num_blocks,
        bound=bound,
        max_model_len=fitted_max_model_len(config, max_len, num_blocks, footprint),
        groups=groups,
    )
    _check_fits(plan, config, share, max_len)
    return plan


def fitted_max_model_len(
    config: RunnerConfig, max_model_len: int, num_blocks: int, footprint: KVFootprint
) -> int:
    """A length nobody asked for gives way to the cache's size; an explicit one does not."""
    if config.max_model_len is not None:
        return max_model_len
    return max(1, footprint.longest(num_blocks, max_model_len))


def _num_blocks(
    config: RunnerConfig,
    tp_size: int,
    device: DeviceType,
    needed_blocks: int,
    block_bytes: int,
    left_bytes: int,
) -> tuple[int, str]:
    if config.num_blocks is not None:
        return config.num_blocks, "num_blocks"
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes // block_bytes, "kv_cache_bytes"
    bounds = [(max(0, left_bytes) // block_bytes, "memory_utilization")]
    if device == "cpu":
        bounds.append((needed_blocks, "max_num_seqs x max_model_len"))
        bounds.append((_CPU_CACHE_BYTES // tp_size // block_bytes, "4 GiB for CPU caches"))
    return min(bounds)


def _check_fits(plan: MemoryPlan, config: RunnerConfig, share_bytes: int, max_len: int) -> None:
    total = plan.weight_bytes + plan.activation_bytes + plan.kv_cache_bytes
    if total > share_bytes:
        raise _misfit(
            plan, f"needs {_size(total).strip()} and {_size(share_bytes).strip()} are free"
        )
    least = max_len if config.max_model_len is not None else min(max_len, _MIN_FITTED_TOKENS)
    if config.num_blocks is not None and config.max_model_len is None:
        least = 1  # an explicit pool is taken at its word
    if plan.footprint.longest(plan.num_blocks, least) < least:
        hint = "lower max_model_len, raise memory_utilization or use more ranks"
        raise _misfit(plan, f"the KV cache holds less than one sequence of {least} tokens; {hint}")


def _misfit(plan: MemoryPlan, why: str) -> MemoryPlanError:
    return MemoryPlanError("\n".join([f"the model does not fit: {why}", *plan.describe()]))


def _activation_bytes(
    spec: ModelSpec,
    config: RunnerConfig,
    tp_size: int,
    num_heads: int,
    num_kv_heads: int,
    item: int,
    max_len: int,
) -> int:
    """An upper estimate of what a step holds beside weights and cache."""
    projected = (
        3 * (num_heads + 2 * num_kv_heads) * spec.head_dim
    )  # as projected, rotated, attended
    width = 4 * spec.hidden_size + projected + 3 * divide_up(spec.intermediate_size, tp_size)
    width += _experts_width(spec, tp_size)
    tokens = config.max_num_batched_tokens * width * item
    logits_rows = max(config.max_num_seqs, _LOGITS_ROWS)
    logits = _LOGITS_COPIES * logits_rows * spec.vocab_size * DTYPE_BYTES["float32"]
    gathered_tokens = min(max(_GATHERED_TOKENS, max_len), config.max_num_seqs * max_len)
    gathered = 2 * gathered_tokens * num_kv_heads * spec.head_dim * item
    rotary_tables = 2 * max_len * spec.head_dim * item
    # Soft-capped attention and attention with sinks hold their scores in memory.
    has_scores = spec.attention_soft_cap is not None or spec.attention_sinks
    scores = config.max_num_batched_tokens * num_heads * max_len if has_scores else 0
    scored = _SCORES_COPIES * min(scores, _MAX_SCORES) * DTYPE_BYTES["float32"]
    return tokens + logits + gathered + rotary_tables + scored


def _experts_width(spec: ModelSpec, tp_size: int) -> int:
    """Numbers a token needs in a mixture of experts: a row for each, as sorted and as put back."""
    if spec.moe is None:
        return 0
    size = spec.moe.intermediate_size
    if not spec.moe.is_expert_parallel:  # else one rank may have them all
        size = divide_up(size, tp_size)
    return spec.moe.top_k * (3 * spec.hidden_size + 4 * size)


def host_available_bytes() -> int:
    """Memory this process can still take: the host's, or its container's if that allows less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit, used = (
        _read_int(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current")
    )
    if limit is not None and used is not None:
        available = min(available, max(0, limit - used))
    return available


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max": no limit
        return None


def _has_amx() -> bool:
    try:
        return "amx_bf16" in _CPUINFO.read_text()
    except OSError:
        return False


def _size(num_bytes: int) -> str:
    """Aligned for a column: '  1.25 GiB'."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            break
        value /= 1024
    digits = 0 if unit == "B" else 2
    return f"{value:8.{digits}f} {unit}"
