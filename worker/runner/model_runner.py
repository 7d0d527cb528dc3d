"""One rank's model: loads its weights, owns its KV cache, and computes what a StepPlan says.

It knows nothing of requests, queues or other replicas; the leader's engine decides, and every rank
runs the same plans in the same order. Rank 0 samples; what the others return is empty.
"""

import logging
import os
from collections.abc import Callable
from time import monotonic

import torch
from torch import Tensor

from worker.attention.base import ForwardContext, LayerKVCache
from worker.attention.registry import attention_backend
from worker.config import RunnerConfig
from worker.engine.kv_footprint import KVFootprint
from worker.engine.step import StepPlan, StepResult, TokenLogprobs
from worker.errors import MemoryPlanError
from worker.layers.linear import TensorOptions
from worker.layers.shard import split_heads
from worker.memory_plan import (
    MemoryPlan,
    fitted_max_model_len,
    host_available_bytes,
    plan_memory,
    resolve_max_model_len,
)
from worker.models.config import ModelConfig, load_model_config
from worker.models.decoder import Decoder
from worker.models.deployed_spec import deployed_spec
from worker.models.loader import Progress, load_weights
from worker.models.registry import find_family
from worker.models.spec import ModelSpec
from worker.native.decoder import NativeDecoder
from worker.native.library import native_library
from worker.native.terms import is_covered
from worker.parallel.group import TPGroup
from worker.runner.allocator import keep_freed_memory
from worker.runner.grammar import GrammarMasks
from worker.runner.input_batch import InputBatch, StepInputs
from worker.runner.kv_cache import allocate_kv_caches
from worker.runner.logits import prompt_logprobs
from worker.runner.mask_client import MaskClient
from worker.runner.prompt_scoring import PromptScoring, ScoredChunk
from worker.runner.sampler import Sampler

logger = logging.getLogger(__name__)

SMALL_MODEL_BYTES = 32 << 20  # of one rank
_SCORED_ROWS = 256  # prompt rows through the head at once: bounds rows x vocabulary of fp32


class ModelRunner:
    """Life: construct, `load`, `plan_num_blocks`, `allocate_kv_cache`, then `execute` step by step.

    Owned by one thread. Invariant: all ranks are given the same calls with the same arguments.
    """

    def __init__(
        self, config: RunnerConfig, tp: TPGroup, device: torch.device | str = "auto"
    ) -> None:
        self.model_config: ModelConfig = load_model_config(config.model_path)
        self._family = find_family(self.model_config)
        self.spec: ModelSpec = deployed_spec(self.model_config, config, tp.size)
        self.device = resolve_device(config.device if device == "auto" else device)
        self._config = config
        self._tp = tp
        self._backend = attention_backend(config.attention_backend, self.device)
        self._max_model_len = resolve_max_model_len(self.model_config, config)
        self.memory_plan = _plan_memory(self.model_config, config, tp.size, self.device)
        self.dtype: torch.dtype = getattr(torch, self.memory_plan.dtype)
        self._model: Decoder | NativeDecoder | None = None
        self._kv_caches: list[LayerKVCache] = []
        self._batch: InputBatch | None = None
        self._scoring = PromptScoring()
        self._sampler: Sampler | None = None
        if self.device.type == "cpu":
            default = default_num_threads(tp.size, self.memory_plan.weight_bytes)
            torch.set_num_threads(config.num_threads or default)
            keep_freed_memory()

    @property
    def max_model_len(self) -> int:
        """Tokens: the model's or the configured limit; also the cache's, once it is allocated."""
        return self._max_model_len

    def load(self, progress: Progress | None = None) -> None:
        """Collective. Raises: CheckpointError when the weights do not match the model."""
        self.load_with(lambda model: self._read_weights(model, progress))

    def load_with(self, fill: Callable[[Decoder], None]) -> None:
        """As `load`, with whatever `fill` writes into the parameters, which are zeros before."""
        start = monotonic()
        options = TensorOptions(self.dtype, self.device)
        model = Decoder(self.spec, self._max_model_len, self._tp, options)
        fill(model)
        self._model = self._native(model.eval())
        logger.info("rank=%d weights loaded in %.2f s", self._tp.rank, monotonic() - start)

    def _read_weights(self, model: Decoder, progress: Progress | None) -> None:
        weights = self._family.build_weight_map(self.spec)
        quantization = self.model_config.quantization
        load_weights(model, self._config.model_path, weights, progress, quantization)

    def _native(self, model: Decoder) -> Decoder | NativeDecoder:
        """The same model on the CPU's own kernels, where there are any for it."""
        config = self._config
        if not config.wants_native_kernels or self.device.type != "cpu":
            return model
        if not is_covered(self.spec, self.dtype):
            return model
        library = native_library()
        # All ranks or none: they exchange other numbers than ranks on torch do.
        have_all = self._tp.min_int(int(library is not None)) == 1
        if library is None or not have_all:
            return model
        num_threads = torch.get_num_threads()
        return NativeDecoder(
            model, library, self._tp, num_threads, self._max_model_len, config.block_size
        )

    def plan_num_blocks(self) -> int:
        """What this rank's memory allows; the group takes the smallest."""
        return self.memory_plan.num_blocks

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """The same count on every rank. From here on the runner can execute plans."""
        spec, config = self.spec, self._config
        _, num_kv_heads = split_heads(spec.num_heads, spec.num_kv_heads, self._tp.size)
        self._max_model_len = fitted_max_model_len(
            config, self._max_model_len, num_blocks, spec.kv_window
        )
        footprint = KVFootprint(config.block_size, spec.kv_window)
        if footprint.longest(num_blocks, self._max_model_len) < self._max_model_len:
            raise MemoryPlanError(
                f"{num_blocks} blocks hold less than one sequence of {self._max_model_len} tokens"
            )
        self._kv_caches = allocate_kv_caches(
            spec.num_layers,
            num_blocks,
            config.block_size,
            num_kv_heads,
            spec.head_dim,
            self.dtype,
            self.device,
            is_shared=spec.mla is not None,
        )
        self._batch = InputBatch(
            config.max_num_seqs, self._max_model_len, config.block_size, self.dtype, self.device
        )
        if self._tp.rank == 0:
            eos_token_ids = self.model_config.eos_token_ids
            masks = MaskClient(
                config.model_path, spec.vocab_size, eos_token_ids, config.max_num_seqs
            )
            grammars = GrammarMasks(masks, eos_token_ids)
            self._sampler = Sampler(spec.vocab_size, config.max_num_seqs, self.device, grammars)

    def warm_up(self) -> None:
        """Starts on rank 0 what the first constrained request would have to wait for."""
        if self._sampler is not None:
            self._sampler.warm_up()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step. Collective over the ranks."""
        self._apply(plan)
        if not plan.sequences:
            return StepResult(token_ids=[])
        inputs = self._inputs(plan)
        hidden, logits = self._forward(inputs)
        scored = self._score_prompts(plan, inputs, hidden)
        if not inputs.sampled_slots:
            return StepResult(token_ids=[], prompt_logprobs=scored)
        if self._sampler is None:
            return StepResult(token_ids=[])
        new = self._sampler.step(logits, inputs.sampled_slots, inputs.drafts)
        return StepResult(new.token_ids, new.logprobs, scored, new.failed, new.num_tokens)

    @torch.inference_mode()
    def compute_logits(self, plan: StepPlan) -> Tensor:
        """As `execute`, but returns the sampled rows' logits, on any rank: [S + D, vocab_size] of
        S sampled sequences with D guesses.
        """
        self._apply(plan)
        return self._forward(self._inputs(plan))[1]

    def _apply(self, plan: StepPlan) -> None:
        assert self._batch is not None, "execute before allocate_kv_cache"
        self._batch.apply(plan)
        for slot in plan.released:
            self._scoring.release(slot)
            if self._sampler is not None:
                self._sampler.release(slot)
        for sequence in plan.admitted:
            self._scoring.admit(sequence)
            if self._sampler is not None:
                self._sampler.admit(sequence)

    def _inputs(self, plan: StepPlan) -> StepInputs:
        assert self._batch is not None, "execute before allocate_kv_cache"
        return self._batch.build(plan)

    def _forward(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """All tokens' hidden states and the sampled rows' logits: [S + D, vocab_size] fp32."""
        assert self._model is not None, "execute before load"
        ctx = ForwardContext(
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            layout=inputs.layout,
            kv_caches=self._kv_caches,
            backend=self._backend,
        )
        if isinstance(self._model, NativeDecoder):
            return self._model.forward(inputs.token_ids, ctx, inputs.sampled_rows)
        hidden = self._model(inputs.token_ids, ctx)
        if not len(inputs.sampled_rows):
            return hidden, hidden.new_empty((0, self.spec.vocab_size))
        return hidden, self._logits(hidden, inputs.sampled_rows)

    def _logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Only these rows go through the head. Collective. Returns [rows, vocab_size] fp32."""
        assert self._model is not None, "execute before load"
        return self._model.logits(hidden.index_select(0, rows)).float()

    def _score_prompts(
        self, plan: StepPlan, inputs: StepInputs, hidden: Tensor
    ) -> dict[int, list[TokenLogprobs]]:
        chunks = self._scoring.take(plan.sequences, inputs.first_rows)
        return {chunk.slot: self._score(chunk, hidden) for chunk in chunks}

    def _score(self, chunk: ScoredChunk, hidden: Tensor) -> list[TokenLogprobs]:
        scores: list[TokenLogprobs] = []
        for start in range(0, len(chunk.target_ids), _SCORED_ROWS):
            target_ids = chunk.target_ids[start : start + _SCORED_ROWS]
            first = chunk.first_row + start
            rows = torch.arange(first, first + len(target_ids), device=self.device)
            logits = self._logits(hidden, rows)
            if self._tp.rank == 0:
                targets = torch.tensor(target_ids, device=self.device)
                scores += prompt_logprobs(logits, targets, chunk.num_top)
        return scores


def resolve_device(device: torch.device | str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def default_num_threads(ranks_on_host: int, weight_bytes: int) -> int:
    """Cores this process may run on, shared evenly; one for a model so small that its products take
    microseconds: their threads then wait for each other, and for the gateway, longer than they
    compute (measured through a cluster on two cores: 5.0 ms a token with two, 2.6 with one).
    """
    if weight_bytes < SMALL_MODEL_BYTES:
        return 1
    try:
        num_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        num_cores = os.cpu_count() or 1
    return max(1, num_cores // ranks_on_host)


def _plan_memory(
    model: ModelConfig, config: RunnerConfig, tp_size: int, device: torch.device
) -> MemoryPlan:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What others hold of the card counts against the share that may be used.
        available = free - int(total * (1 - config.memory_utilization))
        available = int(max(0, available) / config.memory_utilization)
        return plan_memory(model, config, tp_size, "cuda", available)
    return plan_memory(model, config, tp_size, "cpu", host_available_bytes())
