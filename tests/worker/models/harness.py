"""Tiny random checkpoints from transformers, and a driver that writes plans by hand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.config import RunnerConfig
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence, ScheduledSequence, StepPlan
from worker.parallel.group import SingleGroup, TPGroup
from worker.runner.model_runner import ModelRunner

TINY: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def make_checkpoint(path: Path, config: Any, seed: int = 0) -> Any:
    """Saves a random model of a transformers config; returns it, in fp32 and evaluation mode."""
    import transformers

    model_class = getattr(transformers, config.architectures[0])
    config._attn_implementation = config._attn_implementation or "eager"
    torch.manual_seed(seed)
    model = model_class(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() > 1 else 0.1
            parameter.normal_(0, scale)
            if "norm" in name or ".ln_" in name:
                parameter.add_(1.0)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1)
    model.save_pretrained(path)
    return model


def llama_config(**overrides: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{**TINY, "architectures": ["LlamaForCausalLM"], **overrides})


def make_runner(path: Path, tp: TPGroup | None = None, **overrides: Any) -> ModelRunner:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "block_size": 4,
        "num_blocks": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "num_threads": 1,
        **overrides,
    }
    runner = ModelRunner(RunnerConfig(str(path), **settings), tp or SingleGroup())
    runner.load()
    runner.allocate_kv_cache(runner.plan_num_blocks())
    return runner


@dataclass
class PlanDriver:
    """Plays the engine: admits sequences, hands out scattered blocks, and writes plans."""

    block_size: int
    num_blocks: int  # for each group
    num_groups: int = 1
    tokens: dict[int, list[int]] = field(default_factory=dict)  # slot -> all tokens
    computed: dict[int, int] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        count = self.num_blocks * self.num_groups
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
        self._free = order.tolist()
        self._admitted: list[AdmittedSequence] = []
        self._released: list[int] = []
        self._pending_blocks: dict[int, list[int]] = {}

    def admit(
        self,
        slot: int,
        prompt: list[int],
        output: list[int] | None = None,
        sampling: SamplingParams | None = None,
        cached_from: int | None = None,
        num_cached: int = 0,
        num_prompt_logprobs_done: int = 0,
    ) -> None:
        """`cached_from`: a slot whose first `num_cached` tokens (whole blocks) this one shares."""
        sampling = sampling or SamplingParams(max_tokens=10, temperature=0.0)
        admitted = AdmittedSequence(slot, prompt, output or [], sampling, num_prompt_logprobs_done)
        self._admitted.append(admitted)
        self.tokens[slot] = prompt + (output or [])
        self.computed[slot] = num_cached
        shared = [] if cached_from is None else self.tables[cached_from]
        self.tables[slot] = list(shared[: num_cached // self.block_size * self.num_groups])
        self._pending_blocks[slot] = list(self.tables[slot])

    def release(self, slot: int) -> None:
        self._free += self.tables.pop(slot)
        self._released.append(slot)

    def plan(self, *counts: tuple[int, int]) -> StepPlan:
        """counts: (slot, tokens to compute); sampled when they reach the sequence's end."""
        sequences, token_ids = [], []
        for slot, num_tokens in counts:
            start = self.computed[slot]
            stop = start + num_tokens
            token_ids += self.tokens[slot][start:stop]
            new_blocks = self._pending_blocks.pop(slot, []) + self._grow(slot, stop)
            is_sampled = stop == len(self.tokens[slot])
            sequences.append(ScheduledSequence(slot, start, num_tokens, new_blocks, is_sampled))
            self.computed[slot] = stop
        self.step += 1
        plan = StepPlan(self.step, token_ids, sequences, self._admitted, self._released)
        self._admitted, self._released = [], []
        return plan

    def _grow(self, slot: int, num_tokens: int) -> list[int]:
        table = self.tables[slot]
        needed = -(-num_tokens // self.block_size) * self.num_groups - len(table)
        new = [self._free.pop() for _ in range(needed)]
        table += new
        return new


def driver_for(runner: ModelRunner, block_size: int = 4) -> PlanDriver:
    return PlanDriver(block_size, runner.plan_num_blocks(), runner.kv_groups.num_groups)


def random_tokens(count: int, seed: int, vocab_size: int = 99) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (count,), generator=generator).tolist()


@torch.no_grad()
def reference_logits(model: Any, token_ids: list[int]) -> Tensor:
    """Of every position, in one pass without a cache: [len(token_ids), vocab_size]."""
    return model(torch.tensor([token_ids]), use_cache=False).logits[0]
