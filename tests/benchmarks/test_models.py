"""The models that speed is measured on load and compute like any other."""

from pathlib import Path
from unittest import mock

import torch
from tokenizers import Tokenizer

from benchmarks import models
from benchmarks.shapes import SHAPES
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
