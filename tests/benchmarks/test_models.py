"""The models that speed is measured on load and compute like any other."""

import json
import math
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from benchmarks import models
from benchmarks.shapes import LARGE_SHAPES, SHAPES, hf_config
from benchmarks.tensor_shapes import tensor_shapes
from tests.worker.models.harness import driver_for, make_runner, random_tokens


def test_a_made_model_loads_and_computes(tmp_path: Path) -> None:
    with mock.patch.object(models, "_CORPUS_BYTES", 200_000):
        (folder,) = models.make_models(["tiny"], tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SHAPES["tiny"].vocab_size
    text = "def main(): return 1"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    runner = make_runner(folder, max_model_len=512)
    driver = driver_for(runner)
    driver.admit(0, random_tokens(5, seed=1))
    logits = runner.compute_logits(driver.plan((0, 5)))
    assert logits.shape == (1, 4096)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["llama-8b", "mpt-7b", "30b-a3b"])
def test_a_large_shapes_tensors_are_those_its_family_wants(name: str, tmp_path: Path) -> None:
    shape = LARGE_SHAPES[name]
    small = replace(
        shape,
        num_layers=2,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2 if shape.num_kv_heads < shape.num_heads else 4,
        head_dim=16,
        intermediate_size=128,
        vocab_size=96,
        num_experts=min(shape.num_experts, 4),
        top_k=min(shape.top_k, 2),
    )
    save_file(models.random_weights(small), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hf_config(small)))
    runner = make_runner(tmp_path, max_model_len=64)
    driver = driver_for(runner)
    driver.admit(0, [1, 2, 3])
    assert torch.isfinite(runner.compute_logits(driver.plan((0, 3)))).all()


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-8b", 8.03), ("mpt-7b", 6.65), ("30b-a3b", 30.5)]
)
def test_a_large_shape_has_its_models_size(name: str, billions: float) -> None:
    sizes = tensor_shapes(LARGE_SHAPES[name]).values()
    assert sum(map(math.prod, sizes)) / 1e9 == pytest.approx(billions, rel=0.01)
