"""Loading checkpoints: sharded and pickled files, progress, and mismatches that are listed."""

import json
import pickle
import struct
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any, cast

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
from tests.worker.simulated_group import run_ranks
from worker.errors import CheckpointError
from worker.layers.linear import TensorOptions
from worker.layers.shard import ShardedLayer
from worker.models.checkpoint import read_tensor_entries
from worker.models.config import ModelConfig, load_model_config
from worker.models.decoder import Decoder
from worker.models.family import Target
from worker.models.loader import load_weights
from worker.models.registry import find_family
from worker.native.build import can_have_library
from worker.parallel.group import SingleGroup, TPGroup


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


@pytest.mark.parametrize("num_threads", [1, 4])
def test_several_threads_load_what_one_loads(tmp_path: Path, num_threads: int) -> None:
    make_sharded(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        model = loaded_model(tmp_path, SingleGroup())
    finally:
        torch.set_num_threads(before)
    tensors: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        tensors |= load_file(file)
    for layer in range(2):
        expected = tensors[f"model.layers.{layer}.self_attn.o_proj.weight"]
        assert torch.equal(model[f"layers.{layer}.attention.output.weight"], expected)
    assert torch.equal(model["embedding.weight"], tensors["model.embed_tokens.weight"])
    assert sum(p.numel() for p in model.values()) == sum(t.numel() for t in tensors.values())
    assert all(p.any() for p in model.values())


def loaded_model(path: Path, group: TPGroup) -> dict[str, torch.Tensor]:
    """The parameters of one rank."""
    config = load_model_config(str(path))
    family = find_family(config)
    spec = family.build_spec(config)
    model = Decoder(spec, 64, group, TensorOptions(torch.float32, torch.device("cpu")))
    load_weights(model, str(path), family.build_weight_map(spec))
    return dict(model.named_parameters())


def test_file_named_by_the_index_but_absent_is_listed(tmp_path: Path) -> None:
    make_sharded(tmp_path)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing files: part-1\.safetensors"):
        make_runner(tmp_path)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \.safetensors files and no pytorch_model"):
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


def test_file_that_the_library_refuses_is_named(tmp_path: Path) -> None:
    make_sharded(tmp_path)
    runner = make_runner(tmp_path)
    content = (tmp_path / "part-1.safetensors").read_bytes()
    # A header that our reader takes and the library's does not: bytes that belong to no tensor.
    (tmp_path / "part-1.safetensors").write_bytes(content + b"excess")
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors cannot be read"):
        runner.load()


def logits_of(path: Path, text: list[int]) -> torch.Tensor:
    runner = make_runner(path)
    driver = driver_for(runner)
    driver.admit(0, text)
    return runner.compute_logits(driver.plan((0, len(text))))[0]


def pickle_weights(path: Path, model: Any, num_files: int = 1, **options: Any) -> None:
    """In place of the safetensors: all that the model has, tied tensors and buffers too."""
    (path / "model.safetensors").unlink()
    state = model.state_dict()
    if num_files == 1:
        torch.save(state, path / "pytorch_model.bin", **options)
        return
    weight_map = {name: f"part-{i % num_files}.bin" for i, name in enumerate(sorted(state))}
    for part in set(weight_map.values()):
        torch.save({n: t for n, t in state.items() if weight_map[n] == part}, path / part)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "options", [{}, {"num_files": 3}, {"_use_new_zipfile_serialization": False}]
)
def test_pickled_checkpoint_loads(tmp_path: Path, options: dict[str, Any]) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    shapes = {n: e.shape for n, e in read_tensor_entries(str(tmp_path)).items()}
    pickle_weights(tmp_path, model, **options)
    assert {n: e.shape for n, e in read_tensor_entries(str(tmp_path)).items()} == shapes
    text = random_tokens(9, seed=0)
    logits = logits_of(tmp_path, text)
    torch.testing.assert_close(logits, reference_logits(model, text)[-1], rtol=0, atol=1e-4)


def test_pickled_copies_of_tied_tensors_are_ignored(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config(tie_word_embeddings=True))
    pickle_weights(tmp_path, model)
    assert "lm_head.weight" in read_tensor_entries(str(tmp_path))
    text = random_tokens(9, seed=0)
    logits = logits_of(tmp_path, text)
    torch.testing.assert_close(logits, reference_logits(model, text)[-1], rtol=0, atol=1e-4)


def test_ranks_fill_their_shards_from_pickled_files_alike(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    from_safetensors = run_ranks(2, lambda group: loaded_model(tmp_path, group))
    pickle_weights(tmp_path, model)
    from_pickled = run_ranks(2, lambda group: loaded_model(tmp_path, group))
    for expected, found in zip(from_safetensors, from_pickled, strict=True):
        assert expected.keys() == found.keys()
        for name, parameter in expected.items():
            assert parameter.any() and torch.equal(parameter, found[name]), name


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@on_linux
@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("is_pickled", [True, False])
def test_loaded_model_keeps_no_file_mapped(
    tmp_path: Path, is_native: bool, is_pickled: bool
) -> None:
    """Who cuts a checkpoint's file short must not end a server that has loaded it."""
    model = make_checkpoint(tmp_path, llama_config())
    if is_pickled:
        pickle_weights(tmp_path, model)
    runner = make_runner(tmp_path, native_kernels=is_native)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    driver = driver_for(runner)
    driver.admit(0, random_tokens(9, seed=0))
    before = runner.compute_logits(driver.plan((0, 9)))
    for file in (*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")):
        file.write_bytes(b"")
    driver.tokens[0].append(1)
    after = runner.compute_logits(driver.plan((0, 1)))
    assert before.isfinite().all() and after.isfinite().all()


LOAD_IN_A_RUNNER = """
import sys
from benchmarks.loading_rank import PeakMemory
from worker.config import RunnerConfig
from worker.native.library import native_library
from worker.parallel.group import SingleGroup
from worker.runner.model_runner import ModelRunner
native_library()
runner = ModelRunner(RunnerConfig(sys.argv[1], device="cpu", dtype="bfloat16"), SingleGroup())
with PeakMemory() as memory:
    runner.load()
print(memory.peak_bytes)
"""


@on_linux
def test_runner_never_holds_a_matrix_twice(tmp_path: Path) -> None:
    """With kernels its values go from the file to where they are packed. The head is nearly half of
    it all; the file is a hole.
    """
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1}
    config = llama_config(**shape, vocab_size=65536, head_dim=64, dtype="bfloat16")
    config.save_pretrained(tmp_path)
    file_bytes = write_hollow_weights(tmp_path, load_model_config(str(tmp_path)))
    command = [sys.executable, "-c", LOAD_IN_A_RUNNER, str(tmp_path)]
    peak_bytes = int(subprocess.check_output(command, timeout=60))
    assert 0.95 * file_bytes < peak_bytes < 1.15 * file_bytes


@on_linux
@pytest.mark.parametrize("into", ["parameters", "kernels"])
def test_rank_of_two_takes_little_more_memory_than_its_half(tmp_path: Path, into: str) -> None:
    """All of it in matrices that ranks split, by rows and by columns; the file is a hole."""
    if into == "kernels" and not can_have_library():
        pytest.skip("no kernels for this machine")
    shape = {"hidden_size": 1024, "intermediate_size": 16384, "num_hidden_layers": 1}
    config = llama_config(**{**shape, "vocab_size": 32768, "head_dim": 64, "dtype": "bfloat16"})
    config.save_pretrained(tmp_path)
    file_bytes = write_hollow_weights(tmp_path, load_model_config(str(tmp_path)))
    command = [sys.executable, "-m", "benchmarks.loading", str(tmp_path), "--tp", "2"]
    output = subprocess.check_output([*command, "--rank", "1", "--into", into], timeout=60)
    loaded = json.loads(output)
    kept = 0.375 if into == "kernels" else 0.5  # of 16 bits the kernels keep 12
    assert kept - 0.05 < loaded["own_bytes"] / file_bytes < kept + 0.05
    assert loaded["own_bytes"] < loaded["peak_bytes"] < 0.6 * file_bytes


def write_hollow_weights(path: Path, config: ModelConfig) -> int:
    """The file's size."""
    options = TensorOptions(torch.bfloat16, torch.device("meta"))
    family = find_family(config)
    spec = family.build_spec(config)
    model = Decoder(spec, 64, SingleGroup(), options)
    header: dict[str, Any] = {}
    end = 0
    for name, target in family.build_weight_map(spec).targets.items():
        assert isinstance(target, Target)
        layer = cast(ShardedLayer, model.get_submodule(target.parameter.rpartition(".")[0]))
        shape = layer.shard(target.parameter.rpartition(".")[2], target.part).full_shape
        size = 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        return f.truncate(8 + len(text) + end)


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    pickle_weights(tmp_path, model)
    code = (
        "import sys; from worker.models.checkpoint import read_tensor_entries;"
        "assert len(read_tensor_entries(sys.argv[1])) > 10; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_safetensors_are_preferred_to_pickled_files(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    make_runner(tmp_path)


class _Attack:
    """What a pickle can do to who reads it naively."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("attacked"), "x"))


@pytest.mark.parametrize("is_archive", [True, False])
def test_pickled_file_cannot_run_code(
    tmp_path: Path, is_archive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path, llama_config())
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save({"x": _Attack()}, file, _use_new_zipfile_serialization=is_archive)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read.*it holds"):
        make_runner(tmp_path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1", pickle.dumps({"x": 1})]
)
def test_file_that_holds_no_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    make_checkpoint(tmp_path, llama_config())
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        make_runner(tmp_path)


@pytest.mark.parametrize("is_archive", [True, False])
def test_truncated_pickled_file_is_refused(tmp_path: Path, is_archive: bool) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    pickle_weights(tmp_path, model, _use_new_zipfile_serialization=is_archive)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        make_runner(tmp_path)
