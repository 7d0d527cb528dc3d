"""One rank's model: loads its weights, owns its KV cache, and computes what a StepPlan says.

It knows nothing of requests, queues or other replicas; the leader's engine decides, and every rank
runs the same plans in the same order. Rank 0 samples; what the others return is empty.
"""

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic

import torch
from torch import Tensor

from worker.attention.base import BatchLayout, ForwardContext, LayerKVCache
from worker.attention.registry import attention_backend
from worker.config import RunnerConfig
from worker.engine.step import StepPlan, StepResult, TokenLogprobs
from worker.errors import MemoryPlanError
from worker.kv_groups import KVGroups
from worker.layers.shard import divide_up, split_heads
from worker.memory_plan import fitted_max_model_len, resolve_max_model_len
from worker.models.config import ModelConfig, load_model_config
from worker.models.decoder import Decoder
from worker.models.deployed_spec import deployed_spec
from worker.models.loader import Progress
from worker.models.spec import ModelSpec
from worker.native.decoder import NativeDecoder
from worker.parallel.group import TPGroup
from worker.runner.allocator import keep_freed_memory
from worker.runner.attention_uses import attention_uses, lone_layout
from worker.runner.cuda_graphs import DecodeGraphs, GraphParts, graph_parts
from worker.runner.device import default_num_threads, plan_rank_memory, resolve_device
from worker.runner.grammar import GrammarMasks
from worker.runner.input_batch import InputBatch, StepInputs
from worker.runner.kv_cache import allocate_kv_caches
from worker.runner.logits import prompt_logprobs
from worker.runner.mask_client import MaskClient
from worker.runner.memory_profile import (
    MemoryProbe,
    MemoryProfile,
    describe,
    device_probe,
    fitted_plan,
    graph_margin_bytes,
    greatest_step,
    measure_memory,
)
from worker.runner.newest_tokens import NewestTokens
from worker.runner.pending_step import PendingStep
from worker.runner.prompt_scoring import PromptScoring, ScoredChunk
from worker.runner.rank_model import RankModel
from worker.runner.sampler import Sampler

logger = logging.getLogger(__name__)

_STEP_TIMEOUT_S = 600.0  # only bounds a wait: a step that hangs is noticed by its age
_SCORED_ROWS = 256  # prompt rows through the head at once: bounds rows x vocabulary of fp32


class ModelRunner:
    """Life: construct, `load`, `plan_num_blocks`, `allocate_kv_cache`, then `execute` step by step.

    Owned by one thread. Invariant: all ranks are given the same calls with the same arguments.
    """

    def __init__(
        self,
        config: RunnerConfig,
        tp: TPGroup,
        device: torch.device | str = "auto",
        probe: MemoryProbe | None = None,
        parts: GraphParts | None = None,
    ) -> None:
        """`probe`: measures what steps take before the cache is sized; `parts`: what decode steps
        are captured with. None: a card's own, on CPUs none.
        """
        self.model_config: ModelConfig = load_model_config(config.model_path)
        self.spec: ModelSpec = deployed_spec(self.model_config, config, tp.size)
        self.device = resolve_device(config.device if device == "auto" else device)
        self._config = config
        self._tp = tp
        self._backend = attention_backend(config.attention_backend, self.device)
        self._max_model_len = resolve_max_model_len(self.model_config, config)
        self.memory_plan = plan_rank_memory(self.model_config, config, tp.size, self.device)
        self._probe = probe or device_probe(self.device)  # None: measured, or not to be
        self.dtype: torch.dtype = getattr(torch, self.memory_plan.dtype)
        self._model: Decoder | NativeDecoder | None = None
        self._kv_caches: list[LayerKVCache] = []
        self._batch: InputBatch | None = None
        self._newest: NewestTokens | None = None
        if config.enforce_eager:
            parts = None
        elif parts is None:
            parts = graph_parts(self._backend, self.device)
        self._graph_parts = parts
        self._graphs: DecodeGraphs | None = None
        self._graph_bytes: int | None = None  # what graphs may take; None: not measured
        self.memory_use = ""  # as measured, for an operator; empty: not measured
        self._scoring = PromptScoring()
        self._sampler: Sampler | None = None
        if self.device.type == "cpu":
            default = default_num_threads(tp.size, self.memory_plan.weight_bytes)
            torch.set_num_threads(config.num_threads or default)
            keep_freed_memory()

    @property
    def kv_groups(self) -> KVGroups:
        """Which layers share blocks of the KV cache."""
        return self.memory_plan.groups

    @property
    def is_asynchronous(self) -> bool:
        """Whether `submit` is worth its while: on a device that computes beside the host."""
        asked = self._config.async_scheduling
        return self.device.type != "cpu" if asked is None else asked

    @property
    def max_model_len(self) -> int:
        """Tokens: the model's or the configured limit; also the cache's, once it is allocated."""
        return self._max_model_len

    def load(self, progress: Progress | None = None) -> None:
        """Collective. Raises: CheckpointError when the weights do not match the model."""
        start = monotonic()
        self._model = self._rank_model().load(progress)
        logger.info("rank=%d weights loaded in %.2f s", self._tp.rank, monotonic() - start)

    def load_with(self, fill: Callable[[Decoder], None]) -> None:
        """As `load`, with whatever `fill` writes into the parameters, which are zeros before."""
        self._model = self._rank_model().filled(fill)

    def _rank_model(self) -> RankModel:
        return RankModel(
            self._config,
            self.model_config,
            self.spec,
            self._max_model_len,
            self.dtype,
            self.device,
            self._tp,
        )

    def plan_num_blocks(self) -> int:
        """What this rank's memory allows; the group takes the smallest. Collective, after `load`: a
        card's memory is measured over the greatest steps.

        Raises: MemoryPlanError when they, or what was asked for, do not fit.
        """
        if self._probe is not None:
            profile = self._measured(self._probe)
            self._probe = None
            self.memory_plan = fitted_plan(self.memory_plan, profile, self._config)
            plan = self.memory_plan
            self.memory_use = describe(plan, profile, plan.num_blocks)
            logger.info("rank=%d %s", self._tp.rank, self.memory_use)
        return self.memory_plan.num_blocks

    def _measured(self, probe: MemoryProbe) -> MemoryProfile:
        """Over a cache of one block, which is gone afterwards."""
        config, plan = self._config, self.memory_plan
        longest = max(plan.budget_bytes // plan.block_bytes, 1) * config.block_size
        # The same steps on every rank, however much memory each has.
        max_len = self._tp.min_int(min(self._max_model_len, longest))
        self._set_up(num_blocks=1)
        held = probe.held()
        graphs = self._new_graphs()
        static_bytes = probe.held() - held
        if self._tp.rank == 0:
            self._sampler = Sampler(self.spec.vocab_size, config.max_num_seqs, self.device)
        num_decodes = min(config.max_num_seqs, config.max_num_batched_tokens)
        steps = [
            greatest_step(config, max_len, num_tokens, self.kv_groups.num_groups)
            for num_tokens in (config.max_num_batched_tokens, num_decodes)
        ]
        try:
            num_graphs = 0 if graphs is None else len(graphs.sizes)
            margin = graph_margin_bytes(self.spec.num_layers, num_graphs)
            runs = [partial(self.execute, step) for step in steps]
            profile = measure_memory(probe, runs, margin, static_bytes)
        finally:
            self._kv_caches, self._batch, self._sampler = [], None, None
            probe.trim()
        self._graphs, self._graph_bytes = graphs, profile.graph_bytes - static_bytes
        return profile

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """The same count on every rank. From here on the runner can execute plans."""
        config, footprint = self._config, self.memory_plan.footprint
        self._max_model_len = fitted_max_model_len(
            config, self._max_model_len, num_blocks, footprint
        )
        if footprint.longest(num_blocks, self._max_model_len) < self._max_model_len:
            raise MemoryPlanError(
                f"{num_blocks} blocks hold less than one sequence of {self._max_model_len} tokens"
            )
        self._set_up(num_blocks)
        self._graphs = self._graphs or self._new_graphs()
        if self._graphs is not None:
            null_slot = num_blocks * self.kv_groups.num_groups * config.block_size
            self._graphs.bind(self._kv_caches, null_slot, self._graph_bytes)
        if self._tp.rank == 0:
            eos_token_ids = self.model_config.eos_token_ids
            masks = MaskClient(
                config.model_path, self.spec.vocab_size, eos_token_ids, config.max_num_seqs
            )
            grammars = GrammarMasks(masks, eos_token_ids)
            self._sampler = Sampler(
                self.spec.vocab_size, config.max_num_seqs, self.device, grammars
            )

    def _set_up(self, num_blocks: int) -> None:
        """The cache, and the tables of a batch over it."""
        spec, config = self.spec, self._config
        _, num_kv_heads = split_heads(spec.num_heads, spec.num_kv_heads, self._tp.size)
        self._kv_caches = allocate_kv_caches(
            self.kv_groups,
            num_blocks,
            config.block_size,
            num_kv_heads,
            spec.head_dim,
            self.dtype,
            self.device,
            is_shared=spec.mla is not None,
            num_spare=int(self._graph_parts is not None),
        )
        self._batch = InputBatch(
            config.max_num_seqs,
            self._max_model_len,
            config.block_size,
            self.dtype,
            self.device,
            self.kv_groups.num_groups,
        )
        self._newest = NewestTokens(config.max_num_seqs, self._tp, self.device)

    def _new_graphs(self) -> DecodeGraphs | None:
        """Over the cache there is; they hold none of it before they are bound to one."""
        if self._graph_parts is None or not isinstance(self._model, Decoder):
            return None
        config, plan = self._config, self.memory_plan
        num_groups = self.kv_groups.num_groups
        max_num_seqs = min(config.max_num_seqs, config.max_num_batched_tokens)
        # A block that several sequences share counts for each; beyond that steps run uncaptured.
        most = 2 * max(plan.budget_bytes // plan.block_bytes, plan.num_blocks)
        width = divide_up(self._max_model_len, config.block_size)
        uses = attention_uses(
            self._model, self._backend, self._kv_caches, num_groups, self._lone_layout()
        )
        return DecodeGraphs(
            self._model,
            self._graph_parts,
            uses,
            self._tp,
            num_groups,
            max_num_seqs,
            # Every rank takes the same steps.
            self._tp.min_int(num_groups * min(max_num_seqs * width, most)),
            self.device,
        )

    def _lone_layout(self) -> BatchLayout:
        return lone_layout(self._config.block_size, self.dtype, self.device)

    @torch.inference_mode()
    def capture_decodes(self) -> None:
        """Captures decode steps of every size at once, which else happens as they come up.
        Collective; nothing where steps are not captured.
        """
        if self._graphs is not None:
            self._graphs.capture_all(self._lone_layout())

    def warm_up(self) -> None:
        """Starts on rank 0 what the first constrained request would have to wait for."""
        if self._sampler is not None:
            self._sampler.warm_up()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step. Collective over the ranks."""
        if plan.keeps_samples:  # a follower's part of a step that was submitted
            self.submit(plan)
            return StepResult(token_ids=[])
        self._apply(plan)
        if not plan.sequences:
            return StepResult(token_ids=[])
        inputs = self._inputs(plan)
        largest: list[int] | None = None
        if self._needs_largest_only:
            hidden, largest = self._forward_greedy(inputs)
        else:
            hidden, logits = self._forward(inputs)
        scored = self._score_prompts(plan, inputs, hidden)
        if not inputs.sampled_slots:
            if self._tp.rank == 0:  # who times the step must see its end
                PendingStep(self.device).result(_STEP_TIMEOUT_S)
            return StepResult(token_ids=[], prompt_logprobs=scored)
        if self._sampler is None:
            return StepResult(token_ids=[])
        if largest is None:
            new = self._sampler.step(logits, inputs.sampled_slots, inputs.drafts)
        else:
            new = self._sampler.take_largest(largest, inputs.sampled_slots, inputs.drafts)
        return StepResult(new.token_ids, new.logprobs, scored, new.failed, new.num_tokens)

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> PendingStep:
        """Begins a step that keeps its samples on the device; on the leader its handle brings them.
        Collective. Its sampled sequences are all self-contained and have no guesses.
        """
        assert plan.keeps_samples and self._newest is not None, "not a plan to submit"
        self._apply(plan)
        inputs = self._inputs(plan)
        _, logits = self._forward(inputs)
        slots = inputs.sampled_slots
        tokens, states = None, None
        if slots and self._sampler is not None:
            tokens, states = self._sampler.begin(logits, slots)
        if slots:
            self._newest.keep(tokens, slots)
        return PendingStep(self.device, tokens, states)

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
        assert self._batch is not None and self._newest is not None, "no KV cache yet"
        inputs = self._batch.build(plan)
        if plan.keeps_samples:
            self._newest.fill(inputs.token_ids, plan)
        return inputs

    def _forward(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """All tokens' hidden states and the sampled rows' logits: [S + D, vocab_size] fp32."""
        assert self._model is not None, "execute before load"
        if self._graphs is not None and self._graphs.takes(inputs):
            logits = self._graphs.logits(inputs)
            return logits.new_empty((0, self.spec.hidden_size)), logits
        ctx = self._context(inputs)
        if isinstance(self._model, NativeDecoder):
            return self._model.forward(inputs.token_ids, ctx, inputs.sampled_rows)
        hidden = self._model(inputs.token_ids, ctx)
        if not len(inputs.sampled_rows):
            return hidden, hidden.new_empty((0, self.spec.vocab_size))
        return hidden, self._logits(hidden, inputs.sampled_rows)

    @property
    def _needs_largest_only(self) -> bool:
        """Whether the model can choose the next tokens itself."""
        model, sampler = self._model, self._sampler
        is_able = isinstance(model, NativeDecoder) and model.can_choose
        return is_able and sampler is not None and sampler.needs_largest_only

    def _forward_greedy(self, inputs: StepInputs) -> tuple[Tensor, list[int]]:
        """All tokens' hidden states and the sampled rows' likeliest tokens: [S + D]."""
        assert isinstance(self._model, NativeDecoder), "a model that cannot choose"
        ctx = self._context(inputs)
        return self._model.forward_greedy(inputs.token_ids, ctx, inputs.sampled_rows)

    def _context(self, inputs: StepInputs) -> ForwardContext:
        return ForwardContext(
            positions=inputs.positions,
            slot_mappings=list(inputs.slot_mappings),
            layouts=inputs.layouts,
            kv_caches=self._kv_caches,
            backend=self._backend,
        )

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
