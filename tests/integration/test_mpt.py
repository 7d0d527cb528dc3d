"""The very model on LangChain's page: an MPT, a base model without a chat template, end to end.

Random weights in mpt-7b's form (ALiBi, no biases, tied head), scaled down; what it says is noise,
but it is the same noise each time, through chat, by the documented default template.
"""

import json
from pathlib import Path

import pytest
import torch
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MptConfig, MptForCausalLM

from tests.live import serve

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MESSAGES = [
    SystemMessage(content="You are a helpful assistant that translates English to Italian."),
    HumanMessage(
        content="Translate the following sentence from English to Italian: I love programming."
    ),
]


def make_mpt(folder: Path) -> Path:
    torch.manual_seed(0)
    config = MptConfig(
        d_model=96,
        n_heads=6,  # not a power of two: ALiBi's slopes interleave
        n_layers=2,
        max_seq_len=512,
        vocab_size=320,
        no_bias=True,
        tie_word_embeddings=True,
    )
    MptForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>"}  # and no chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_langchain_gets_its_answer_from_an_mpt(tmp_path: Path) -> None:
    model = make_mpt(tmp_path / "mpt")
    flags = ("--served-model-name", "mosaicml/mpt-7b", "--tensor-parallel-size", "2")
    with serve(tmp_path, str(model), *flags) as live:
        llm = ChatOpenAI(
            model="mosaicml/mpt-7b",
            openai_api_key="EMPTY",
            openai_api_base=live.api,
            max_tokens=5,
            temperature=0,
        )
        first, again = llm.invoke(MESSAGES), llm.invoke(MESSAGES)
        pieces = [chunk.content for chunk in llm.stream(MESSAGES)]
    assert first.content == again.content == "".join(map(str, pieces))
    assert first.usage_metadata is not None
    assert 0 < first.usage_metadata["output_tokens"] <= 5
    assert first.usage_metadata["input_tokens"] > 100  # bytes of the System/User transcript
