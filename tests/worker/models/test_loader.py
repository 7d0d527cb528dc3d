"""Loading checkpoints: sharded files, ranks, types, progress, and mismatches that are listed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.models.harness import (
    driver_for,
    llama_config,
    make_checkpoint,
    make_runner,
    random_tokens,
    reference_logits,
)
from worker.errors import CheckpointError


def rewrite(path: Path, change: Any) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def make_sharded(path: Path) -> Any:
    """The same model in three files and an index."""
    model = make_checkpoint(path, llama_config())
    file = path / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    weight_map = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(sorted(tensors))}
    for part in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == part}, path / part)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def test_index_sharded_checkpoint_loads(tmp_path: Path) -> None:
    model = make_sharded(tmp_path)
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    text = random_tokens(9, seed=0)
    driver.admit(0, text)
    logits = runner.compute_logits(driver.plan((0, 9)))
    torch.testing.assert_close(logits[0], reference_logits(model, text)[-1], rtol=0, atol=1e-4)


def test_file_named_by_the_index_but_absent_is_listed(tmp_path: Path) -> None:
    make_sharded(tmp_path)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing files: part-1\.safetensors"):
        make_runner(tmp_path)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \.safetensors files"):
        make_runner(tmp_path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        make_runner(tmp_path)


def test_missing_and_left_over_tensors_are_listed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.extra.weight"] = tensors.pop("model.norm.weight")

    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError) as error:
        make_runner(tmp_path)
    assert "1 missing: model.norm.weight" in str(error.value)
    assert "1 left over: model.layers.0.mlp.extra.weight" in str(error.value)


def test_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    rewrite(tmp_path, lambda t: t.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[31\], not \[32\]"):
        make_runner(tmp_path)


def test_useless_tensors_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config(tie_word_embeddings=True))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(tmp_path, change)
    make_runner(tmp_path)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    calls: list[tuple[int, int]] = []
    runner.load(lambda done, total: calls.append((done, total)))
    done = [d for d, _ in calls]
    assert done == sorted(done) and len(done) > 10
    parameters = load_file(tmp_path / "model.safetensors")
    total = sum(t.numel() * 4 for t in parameters.values())
    assert calls[-1] == (total, total)
