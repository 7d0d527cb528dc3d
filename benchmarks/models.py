"""Model directories with random weights in the shapes of published models, to measure speed on.

    python -m benchmarks.models --out DIR [tiny 135m 0.5b 1b]

They load in any server of Llama and Qwen2 checkpoints; the values of weights do not matter to
speed. The tokenizer is a byte-level BPE learned from this Python's own library, so nothing is
downloaded.
"""

import argparse
import json
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_CORPUS_BYTES = 40 << 20
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rope_theta: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def has_qkv_bias(self) -> bool:
        return self.architecture == "Qwen2ForCausalLM"


SHAPES = {
    "tiny": Shape("LlamaForCausalLM", 2, 64, 192, 4, 2, 32, 4096, 4096, 1e4),
    # SmolLM2-135M
    "135m": Shape("LlamaForCausalLM", 30, 576, 1536, 9, 3, 64, 49152, 8192, 1e5),
    # Qwen2.5-0.5B
    "0.5b": Shape("Qwen2ForCausalLM", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e6),
    # Llama-3.2-1B
    "1b": Shape("LlamaForCausalLM", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes models with random weights.")
    parser.add_argument("names", nargs="*", default=list(SHAPES), metavar="NAME")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    for folder in make_models(args.names, args.out):
        print(folder)
    return 0


def make_models(names: Sequence[str], out: Path) -> list[Path]:
    """One directory a name; those that are there already are left as they are."""
    folders = [out / name for name in names]
    missing = [n for n, f in zip(names, folders, strict=True) if not (f / "config.json").exists()]
    if missing:
        tokenizer = _learned_tokenizer(max(SHAPES[name].vocab_size for name in missing))
        for name in missing:
            _write_model(SHAPES[name], tokenizer, out / name)
    return folders


def _write_model(shape: Shape, tokenizer: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_weights(shape), folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "tokenizer.json", _cut(tokenizer, shape.vocab_size))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "chat_template": _CHAT_TEMPLATE,
            "model_max_length": shape.max_position,
        },
    )
    _write(folder / "generation_config.json", {"eos_token_id": [0, 2]})
    # Last: its presence says that the directory is complete.
    _write(folder / "config.json", hf_config(shape))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def hf_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": [shape.architecture],
        "model_type": "qwen2" if shape.has_qkv_bias else "llama",
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        **shape.extra,
    }


def random_weights(shape: Shape, seed: int = 0) -> dict[str, torch.Tensor]:
    """A whole checkpoint in bfloat16, by the names that `transformers` gives its tensors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.empty(size).normal_(0.0, 0.02, generator=generator).bfloat16()

    hidden, inner = shape.hidden_size, shape.intermediate_size
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    weights = {
        "model.embed_tokens.weight": normal(shape.vocab_size, hidden),
        "model.norm.weight": torch.ones(hidden).bfloat16(),
    }
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = torch.ones(hidden).bfloat16()
        for name, num_out in (("q", q_size), ("k", kv_size), ("v", kv_size)):
            weights[f"{prefix}self_attn.{name}_proj.weight"] = normal(num_out, hidden)
            if shape.has_qkv_bias:
                weights[f"{prefix}self_attn.{name}_proj.bias"] = normal(num_out)
        weights[f"{prefix}self_attn.o_proj.weight"] = normal(hidden, q_size)
        weights[f"{prefix}mlp.gate_proj.weight"] = normal(inner, hidden)
        weights[f"{prefix}mlp.up_proj.weight"] = normal(inner, hidden)
        weights[f"{prefix}mlp.down_proj.weight"] = normal(hidden, inner)
    return weights


def _corpus() -> Iterator[str]:
    left = _CORPUS_BYTES
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        left -= len(text)
        if left < 0:
            return
        yield text


def _learned_tokenizer(vocab_size: int) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    learned: dict[str, Any] = json.loads(tokenizer.to_str())
    return learned


def _cut(tokenizer: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The first ids only: merges are learned in the order of ids, so a smaller vocabulary is a
    prefix of a larger one. Ids the corpus had no merges for become tokens that no text contains,
    so that every row of the embedding has one.
    """
    model = tokenizer["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i < vocab_size}
    merges = [(left, right) for left, right in model["merges"] if left + right in vocab]
    vocab |= {f"<|unused{i}|>": i for i in range(len(vocab), vocab_size)}
    return {**tokenizer, "model": {**model, "vocab": vocab, "merges": merges}}


if __name__ == "__main__":
    raise SystemExit(main())
