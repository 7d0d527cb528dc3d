"""Families by architecture: those built in, and those that other packages add by entry points."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

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
from worker.models.config import load_model_config
from worker.models.registry import find_family

# As a stranger's package would write it: another architecture, and another name for one tensor.
PLUGIN = """
from dataclasses import replace

from worker.models.families import llama
from worker.models.family import Family


def build_weight_map(spec):
    weights = llama.build_weight_map(spec)
    targets = dict(weights.targets)
    targets["model.last_norm.weight"] = targets.pop("model.norm.weight")
    return replace(weights, targets=targets)


FAMILY = Family(("HomegrownForCausalLM",), llama.build_spec, build_weight_map)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if name.startswith("plugin_"):
            del sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory whose architecture no family from here has."""
    path = tmp_path / "model"
    make_checkpoint(path, llama_config())
    rename_architecture(path, "HomegrownForCausalLM")
    return path


def rename_architecture(path: Path, name: str) -> None:
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "architectures": [name]}))


def install(site: Path, module: str, source: str | None, attribute: str = "FAMILY") -> None:
    info = site / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[shoal.families]\nmine = {module}:{attribute}\n")
    if source is not None:
        (site / f"{module}.py").write_text(source)


def test_family_of_another_package_computes_as_the_reference(site: Path, model: Path) -> None:
    install(site, "plugin_homegrown", PLUGIN)
    reference = make_checkpoint(model, llama_config())
    rename_architecture(model, "HomegrownForCausalLM")
    tensors = load_file(model / "model.safetensors")
    tensors["model.last_norm.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, model / "model.safetensors")

    runner = make_runner(model)
    driver = driver_for(runner)
    text = random_tokens(9, seed=0)
    driver.admit(0, text)
    logits = runner.compute_logits(driver.plan((0, 9)))
    torch.testing.assert_close(logits[0], reference_logits(reference, text)[-1], rtol=0, atol=1e-4)


def test_unknown_architecture_names_itself_and_all_that_is_supported(
    site: Path, model: Path
) -> None:
    install(site, "plugin_homegrown", PLUGIN)
    rename_architecture(model, "NobodyKnowsForCausalLM")
    with pytest.raises(CheckpointError) as error:
        find_family(load_model_config(str(model)))
    assert "architecture NobodyKnowsForCausalLM is not supported" in str(error.value)
    assert "LlamaForCausalLM" in str(error.value) and "HomegrownForCausalLM" in str(error.value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "cannot be loaded: ModuleNotFoundError"),
        ("FAMILY = 1 / 0", "cannot be loaded: ZeroDivisionError: division by zero"),
        ("", "cannot be loaded: AttributeError"),
        ("FAMILY = 'llama'", "is no Family but str"),
    ],
)
def test_broken_plugin_is_named(site: Path, model: Path, source: str | None, problem: str) -> None:
    install(site, "plugin_broken", source)
    with pytest.raises(CheckpointError) as error:
        find_family(load_model_config(str(model)))
    assert "mine (plugin_broken:FAMILY) of plugin_broken 1.2 " + problem in str(error.value)


def test_broken_plugin_is_no_harm_to_the_others(site: Path, model: Path) -> None:
    install(site, "plugin_broken", "raise RuntimeError('boom')")
    install(site, "plugin_homegrown", PLUGIN)
    assert find_family(load_model_config(str(model))).architectures == ("HomegrownForCausalLM",)


def test_plugins_are_left_alone_while_a_family_from_here_fits(site: Path, model: Path) -> None:
    install(site, "plugin_spy", PLUGIN)
    rename_architecture(model, "LlamaForCausalLM")
    assert "LlamaForCausalLM" in find_family(load_model_config(str(model))).architectures
    assert "plugin_spy" not in sys.modules
