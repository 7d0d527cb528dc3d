"""An engine over a model runner in this process, and requests to it: no wire, no other process.

Models come of a directory, or of a shape with random weights written straight into the parameters.
What is measured on them is the callers' affair: `engine.py`, `scheduling.py`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch import nn

from benchmarks.shapes import LARGE_SHAPES, SHAPES, Shape, hf_config
from benchmarks.tensor_shapes import hollow_checkpoint
from worker.config import EngineConfig, RunnerConfig, SpeculationConfig
from worker.models.config import ModelConfig
from worker.models.spec import ModelSpec
from worker.parallel.group import SingleGroup
from worker.runner.model_runner import ModelRunner

ALL_SHAPES = SHAPES | LARGE_SHAPES
_SCALE = 0.02  # of random weights: logits stay finite

R = TypeVar("R", bound=ModelRunner)


@contextmanager
def model_directory(model: str) -> Iterator[Path]:
    """`model`: a directory, or the name of a shape, whose directory has no weights in it.

    Raises: SystemExit for what is neither.
    """
    if model not in ALL_SHAPES:
        if not (Path(model) / "config.json").exists():
            names = ", ".join(ALL_SHAPES)
            raise SystemExit(f"{model} is no model directory and none of the shapes {names}")
        yield Path(model)
        return
    with TemporaryDirectory(prefix="shape-") as folder:
        # The memory plan counts by the tensors of a checkpoint; this one holds none of them.
        hollow_checkpoint(ALL_SHAPES[model], Path(folder) / "model.safetensors")
        config = json.dumps(hf_config(ALL_SHAPES[model]))
        (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        yield Path(folder)


def loaded_runner(runner_class: type[R], model: str, config: RunnerConfig) -> R:
    """The weights are there, the KV cache is not yet. `config` has the path of `model_directory`.

    Raises: CheckpointError, MemoryPlanError, InvalidRequest.
    """
    runner = runner_class(config, SingleGroup())
    if model in ALL_SHAPES:
        runner.load_with(fill_randomly)
    else:
        runner.load()
    return runner


def fill_randomly(model: nn.Module, seed: int = 0) -> None:
    """Writes into the parameters where they are: norms' scales become ones, all else is drawn."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.fill_(1.0)
            continue
        device = parameter.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        parameter.normal_(0.0, _SCALE, generator=generators[device])


def engine_config(
    runner: ModelRunner,
    runner_config: RunnerConfig,
    num_blocks: int,
    target_itl_ms: float | None = 0.0,
    speculation: SpeculationConfig | None = None,
) -> EngineConfig:
    """As a leader plans, but no token ends an answer before its length."""
    return EngineConfig(
        num_blocks=num_blocks,
        block_size=runner_config.block_size,
        max_num_seqs=runner_config.max_num_seqs,
        max_num_batched_tokens=runner_config.max_num_batched_tokens,
        max_model_len=runner.max_model_len,
        vocab_size=runner.model_config.vocab_size,
        eos_token_ids=(),
        windows=runner.kv_groups.windows,
        target_itl_ms=target_itl_ms,
        speculation=speculation,
    )


def shape_of(config: ModelConfig, spec: ModelSpec) -> Shape | None:
    """What `limits.py` counts by; None where that would count wrongly: latent attention, windows,
    experts in some layers only or beside a shared one.
    """
    moe = spec.moe
    if spec.mla is not None or any(window is not None for window in spec.windows):
        return None
    if moe is not None and (moe.shared_intermediate_size or not all(moe.is_sparse)):
        return None
    return Shape(
        config.architecture,
        spec.num_layers,
        spec.hidden_size,
        spec.intermediate_size if moe is None else moe.intermediate_size,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.vocab_size,
        config.max_position,
        0.0 if spec.rope is None else spec.rope.theta,
        is_gated=spec.is_gated or moe is not None,
        num_experts=0 if moe is None else moe.num_experts,
        top_k=0 if moe is None else moe.top_k,
    )
