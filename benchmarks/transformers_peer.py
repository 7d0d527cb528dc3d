"""transformers' continuous batching on the loads of the engine's benchmark, in the same process.

A peer that needs nothing but the package. Its model has the shape's config and weights of its own
drawing; answers have their full length. Called by `engine.py` once its own memory is free.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.load import Load, prompts

_WARM_OUTPUT = 4
_WARM_SEED = 1_000_003
_PAGE = 256  # tokens; its own default
_MIN_BUDGET = 2048  # tokens a step


def measure_transformers(
    folder: Path, loads: Sequence[Load], device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Output tokens/s of each load, prompts included; its cache holds what the load needs.

    A load that fails says why. Raises: ImportError without the package.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    found = []
    for seed, load in enumerate(loads):
        try:
            found.append({"load": asdict(load), "tokens_per_s": _rate(model, load, seed)})
        except Exception as error:  # a peer's failure is a result
            found.append({"load": asdict(load), "error": repr(error)})
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _rate(model: Any, load: Load, seed: int) -> float:
    vocab = (4, model.config.vocab_size)
    num_warm = min(load.concurrency, load.num_requests)
    warm = replace(
        load, seed=seed + _WARM_SEED, vocab=vocab, num_requests=num_warm, output_len=_WARM_OUTPUT
    )
    _generate(model, warm)
    started_s = time.perf_counter()
    num_tokens = _generate(model, replace(load, seed=seed, vocab=vocab))
    seconds = time.perf_counter() - started_s
    if num_tokens != load.num_requests * load.output_len:
        raise RuntimeError(f"{num_tokens} tokens came")
    return num_tokens / seconds


def _generate(model: Any, load: Load) -> int:
    """All its requests, as many at once as the load has; returns how many tokens came."""
    import transformers

    settings = transformers.GenerationConfig(
        max_new_tokens=load.output_len, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    length = load.input_len + load.output_len
    batching = transformers.ContinuousBatchingConfig(
        max_requests_per_batch=load.concurrency,
        max_batch_tokens=max(_MIN_BUDGET, load.concurrency),
        num_blocks=(load.concurrency + 1) * (length // _PAGE + 1),
        page_size=_PAGE,
    )
    results = model.generate_batch(
        inputs=prompts(load), generation_config=settings, continuous_batching_config=batching
    )
    return sum(len(result.generated_tokens) for result in results.values())
