"""Real tokenizers small enough to build in a test: the two kinds that models use."""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_TEXTS = [
    "hello world, hello there! the cat sat on the mat and said: I love programming.",
    "Io amo programmare. Ich liebe Programmieren. stop here, user and assistant",
]
BOS_ID, EOS_ID = 0, 1


@cache
def byte_level_json() -> bytes:
    """Byte-level BPE with <s> and </s>; completions begin with <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS_ID)]
    )
    return tokenizer.to_str().encode()


@cache
def metaspace_json() -> bytes:
    """As SentencePiece models are converted: a space mark, and bytes for what has no token."""
    words = ["▁hello", "▁world", "▁the", "▁cat", "s", "a", "b", "▁"]
    vocab = {"<unk>": 0, "</s>": 1}
    vocab |= {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    vocab |= {word: 258 + place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return tokenizer.to_str().encode()


def model_files(chat_template: str | None = CHAT_TEMPLATE, **defaults: object) -> dict[str, bytes]:
    config: dict[str, object] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    if chat_template is not None:
        config["chat_template"] = chat_template
    return {
        "tokenizer.json": byte_level_json(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps(defaults).encode(),
    }
