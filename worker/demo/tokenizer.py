"""The demo model's tokenizer: byte-level BPE over the corpus, and the ChatML template.

Any text encodes and decodes to itself. `encode_chat` is what training sees; it agrees with the
template that serving applies, and marks the tokens the model has to produce.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from worker.demo.corpus import Message, sample_chat
from worker.demo.grammar import sample_sentence

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = [END_OF_TEXT, IM_START, IM_END, PAD]
END_OF_TEXT_ID, IM_START_ID, IM_END_ID, PAD_ID = range(4)
VOCAB_SIZE = 4096
CONTEXT_TOKENS = 2048

# Content may be null, text or a list of parts, of which the texts count. `tools` is accepted and
# left out: the model cannot call any.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- set content = message['content'] -%}"
    "{%- if content is string -%}{{- content -}}"
    "{%- elif content is not none and content is defined -%}"
    "{%- for part in content -%}"
    "{%- if part is string -%}{{- part -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def train_tokenizer(seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(Random(seed)), trainer)
    return tokenizer


def _texts(rng: Random, num_sentences: int = 30_000) -> Iterator[str]:
    for _ in range(num_sentences):
        sentence = sample_sentence(rng)
        yield sentence.english
        yield from sentence.translations.values()
        yield from (message["content"] for message in sample_chat(rng))
    yield from ("system", "user", "assistant", "tool")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def encode_chat(tokenizer: Tokenizer, chat: list[Message]) -> tuple[list[int], list[bool]]:
    """Token ids, and for each token whether the assistant produces it."""
    token_ids: list[int] = []
    is_answer: list[bool] = []
    for text, answers in _segments(chat):
        ids = tokenizer.encode(text).ids
        token_ids += ids
        is_answer += [answers] * len(ids)
    return token_ids, is_answer


def _segments(chat: list[Message]) -> Iterator[tuple[str, bool]]:
    for message in chat:
        yield f"{IM_START}{message['role']}\n", False
        yield f"{message['content']}{IM_END}", message["role"] == "assistant"
        yield "\n", False


def encode_prompt(tokenizer: Tokenizer, chat: list[Message]) -> list[int]:
    return encode_chat(tokenizer, chat)[0] + tokenizer.encode(f"{IM_START}assistant\n").ids
