"""The text files of a model: what travels to gateways, and tokenizers of the older forms."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from worker.demo import demo_model_path
from worker.errors import CheckpointError
from worker.model_files import digest, read_model_files


def test_demo_model_brings_what_a_gateway_needs() -> None:
    files = read_model_files(str(demo_model_path()))
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(files)


def test_digest_depends_on_names_and_contents_only() -> None:
    files = {"a": b"1", "b": b"2"}
    assert digest(files) == digest(dict(reversed(files.items())))
    assert digest(files) != digest({"a": b"12", "b": b""})
    assert digest(files) != digest({"a": b"2", "b": b"1"})


def test_vocabulary_and_merges_become_a_tokenizer(tmp_path: Path) -> None:
    alphabet = ["<|endoftext|>", "a", "b", "Ġ", "ab", "Ġab"]
    vocab = {token: i for i, token in enumerate(alphabet)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    files = read_model_files(str(tmp_path))
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.encode("ab ab").ids == [4, 5]


def test_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no tokenizer"):
        read_model_files(str(tmp_path))
