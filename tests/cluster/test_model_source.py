"""What MODEL may be, and what is said when it is nothing of that."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from cluster.cli import parse
from cluster.cli_errors import CommandError
from cluster.model_source import download_snapshot, resolve_model
from cluster.options import ServeOptions, serve_options


def options(*argv: str) -> ServeOptions:
    return serve_options(parse(["serve", *argv]), {})


def no_download(hub_id: str, options: ServeOptions) -> str:
    raise AssertionError(f"{hub_id} must not be downloaded")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "org" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model-00001-of-00002.safetensors").write_bytes(b"x" * 100)
    (model / "model-00002-of-00002.safetensors").write_bytes(b"x" * 23)
    return model


def test_folder_is_taken_as_it_is(folder: Path) -> None:
    source = resolve_model(options(str(folder)), no_download)
    assert source.path == str(folder)
    assert source.names == (str(folder),)
    assert source.num_bytes == 123 and not source.is_demo


def test_folder_wins_over_a_hub_id_of_the_same_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    source = resolve_model(options("org/model"), no_download)
    assert (source.path, source.names) == (str(folder), ("org/model",))


def test_served_names_replace_the_models(folder: Path) -> None:
    source = resolve_model(options(str(folder), "--served-model-name", "a", "b"), no_download)
    assert source.names == ("a", "b")


def test_hub_id_is_downloaded(folder: Path) -> None:
    asked = []

    def download(hub_id: str, options: ServeOptions) -> str:
        asked.append((hub_id, options.revision))
        return str(folder)

    source = resolve_model(options("some/thing-1.5B", "--revision", "v2"), download)
    assert asked == [("some/thing-1.5B", "v2")]
    assert (source.path, source.names) == (str(folder), ("some/thing-1.5B",))


def test_nothing_is_the_demo() -> None:
    source = resolve_model(options(), no_download)
    assert source.names == ("shoal-demo",) and source.is_demo and source.num_bytes > 0


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "a/b/c", "~/nothing-here", "-"])
def test_missing_folder_is_named(model: str) -> None:
    with pytest.raises(CommandError, match="no folder"):
        resolve_model(options(model), no_download)


def test_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(CommandError, match="is a file"):
        resolve_model(options(str(file)), no_download)


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "no config.json"), ("*.safetensors", "no weights")]
)
def test_incomplete_folder_is_refused(missing: str, message: str, folder: Path) -> None:
    for file in folder.glob(missing):
        file.unlink()
    with pytest.raises(CommandError, match=message):
        resolve_model(options(str(folder)), no_download)


def test_offline_the_cache_is_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CommandError, match="not in the local cache, and HF_HUB_OFFLINE is set"):
        download_snapshot("nobody/nothing", options("x", "--download-dir", str(tmp_path)))


def test_pickled_weights_count_where_there_are_no_others(folder: Path) -> None:
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(b"x" * 50)
    (folder / "training_args.bin").write_bytes(b"x" * 7)
    assert resolve_model(options(str(folder)), no_download).num_bytes == 123
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert resolve_model(options(str(folder)), no_download).num_bytes == 50


@pytest.mark.parametrize(
    ("on_the_hub", "fetched"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt"],
            ["config.json", "model.safetensors", "vocab.txt"],
        ),
        (
            ["config.json", "pytorch_model.bin", "training_args.bin", "flax_model.msgpack"],
            ["config.json", "pytorch_model.bin"],
        ),
    ],
)
def test_pickled_weights_are_fetched_only_where_there_are_no_others(
    on_the_hub: list[str], fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub(hub_id: str, *, allow_patterns: list[str], **_: object) -> str:
        for name in on_the_hub:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert download_snapshot("some/model", options("x")) == str(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == fetched


def test_offline_a_cached_snapshot_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    found = download_snapshot("some/model", options("x", "--download-dir", str(tmp_path)))
    assert found == str(snapshot)
