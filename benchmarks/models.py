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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.shapes import SHAPES, Shape, hf_config
from benchmarks.tensor_shapes import tensor_shapes

_CORPUS_BYTES = 40 << 20
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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


def random_weights(shape: Shape, seed: int = 0) -> dict[str, torch.Tensor]:
    """A whole checkpoint in bfloat16, by the names that `transformers` gives its tensors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.empty(size).normal_(0.0, 0.02, generator=generator).bfloat16()

    return {
        name: torch.ones(size).bfloat16() if name.endswith("norm.weight") else normal(*size)
        for name, size in tensor_shapes(shape).items()
    }


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
