"""Trains the demo model from nothing: `python -m worker.demo.train --out DIR`.

Chats come fresh from the grammar, so there is no data set and no epoch. The result depends on the
seed and the number of steps, not on the clock. Nothing else in the project calls this.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from worker.demo import demo_model_path
from worker.demo.corpus import sample_chats
from worker.demo.evaluate import evaluate, report
from worker.demo.tokenizer import (
    CONTEXT_TOKENS,
    END_OF_TEXT_ID,
    IM_END_ID,
    PAD_ID,
    VOCAB_SIZE,
    encode_chat,
    save_tokenizer,
    train_tokenizer,
)

ARCHITECTURE: dict[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT_TOKENS,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": IM_END_ID,
    "pad_token_id": PAD_ID,
}
ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class Schedule:
    steps: int
    batch_chats: int = 64
    peak_lr: float = 2e-3
    warmup_steps: int = 150
    weight_decay: float = 0.05

    def lr(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to nothing."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class Batch:
    """B chats padded on the right to T tokens."""

    token_ids: Tensor  # [B, T] int64
    is_target: Tensor  # [B, T - 1] bool: the next token is part of an answer


def batches(tokenizer: Tokenizer, seed: int, batch_chats: int) -> Iterator[Batch]:
    """Chats of similar length share a batch, so that little is spent on padding."""
    rng = Random(seed)
    encoded = (encode_chat(tokenizer, chat) for chat in sample_chats(seed))
    while True:
        pool = sorted(islice(encoded, 16 * batch_chats), key=lambda chat: len(chat[0]))
        groups = [pool[i : i + batch_chats] for i in range(0, len(pool), batch_chats)]
        rng.shuffle(groups)
        yield from map(_collate, groups)


def _collate(group: list[tuple[list[int], list[bool]]]) -> Batch:
    width = max(len(token_ids) for token_ids, _ in group)
    token_ids = [ids + [PAD_ID] * (width - len(ids)) for ids, _ in group]
    is_answer = [marks + [False] * (width - len(marks)) for _, marks in group]
    return Batch(torch.tensor(token_ids), torch.tensor(is_answer)[:, 1:])


def new_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
    return LlamaForCausalLM(LlamaConfig.from_dict({**ARCHITECTURE, "rope_parameters": rope}))


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Cross entropy on answers only; the vocabulary is projected at those positions alone.

    Padding needs no mask: it is on the right, where causal attention does not look.
    """
    hidden = model.model(batch.token_ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[batch.is_target])
    return cross_entropy(logits.float(), batch.token_ids[:, 1:][batch.is_target])


def train(tokenizer: Tokenizer, schedule: Schedule, seed: int) -> LlamaForCausalLM:
    model = new_model(seed)
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, schedule.weight_decay), betas=(0.9, 0.98)
    )
    start_s, num_tokens, losses = time.perf_counter(), 0, []
    stream = islice(batches(tokenizer, seed, schedule.batch_chats), schedule.steps)
    for step, batch in enumerate(stream):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(step)
        loss = answer_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        num_tokens += batch.token_ids.numel()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            elapsed_s = time.perf_counter() - start_s
            print(
                f"step {step + 1}/{schedule.steps}  loss {sum(losses) / len(losses):.4f}  "
                f"{num_tokens / elapsed_s:.0f} tokens/s  {elapsed_s:.0f} s",
                flush=True,
            )
            losses.clear()
    return model.eval()


def _parameter_groups(model: LlamaForCausalLM, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written readable to its owner only
    # Written by hand: the flat keys are the ones that every engine reads.
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **ARCHITECTURE,
        "rope_theta": ROPE_THETA,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    _write_json(folder / "config.json", config)
    generation = {
        "do_sample": False,
        "eos_token_id": [IM_END_ID, END_OF_TEXT_ID],
        "pad_token_id": PAD_ID,
    }
    _write_json(folder / "generation_config.json", generation)
    save_tokenizer(tokenizer, folder)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=demo_model_path())
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=200, help="held out, for the final report")
    args = parser.parse_args()
    tokenizer = train_tokenizer(args.seed)
    model = train(tokenizer, Schedule(args.steps), args.seed)
    save(model, tokenizer, args.out)
    print(report(evaluate(args.out, args.sentences)))


if __name__ == "__main__":
    main()
