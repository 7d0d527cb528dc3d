"""Which cluster "auto" is, and the quick answer where there is none."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.cli_errors import CommandError
from cluster.ray_address import LocalClusters, resolve


@pytest.fixture
def clusters(tmp_path: Path) -> LocalClusters:
    return LocalClusters(tmp_path / "notes")


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield f"127.0.0.1:{s.getsockname()[1]}"


def note_of_another(folder: Path, pid: int, address: str, started: float) -> None:
    folder.mkdir(exist_ok=True)
    note = {"address": address, "auth_mode": "token", "started": started}
    (folder / f"{pid}.json").write_text(json.dumps(note))


def test_noted_cluster_is_found_until_it_is_forgotten(clusters: LocalClusters) -> None:
    clusters.note("10.0.0.1:6379", "token")
    found = clusters.find("auto")
    assert found is not None and (found.address, found.auth_mode) == ("10.0.0.1:6379", "token")
    assert clusters.find("10.0.0.1:6379") == found
    assert clusters.find("10.0.0.2:6379") is None
    clusters.forget()
    clusters.forget()
    assert clusters.find("auto") is None


def test_newest_cluster_wins(tmp_path: Path) -> None:
    parent = psutil.Process(os.getppid())
    note_of_another(tmp_path, parent.pid, "parent:1", parent.create_time())
    clusters = LocalClusters(tmp_path)
    clusters.note("self:1", None)
    found = clusters.find("auto")
    assert found is not None and found.address == "self:1"
    clusters.forget()
    found = clusters.find("auto")
    assert found is not None and found.address == "parent:1"


def test_note_of_a_process_that_is_gone_means_nothing(tmp_path: Path) -> None:
    parent = psutil.Process(os.getppid())
    note_of_another(tmp_path, 2**22 + 1, "gone:1", 1.0)  # beyond the largest id of a process
    note_of_another(tmp_path, parent.pid, "before:1", parent.create_time() - 100.0)
    (tmp_path / "17.json").write_text("{")
    (tmp_path / "18.json").write_text('{"address": "x"}')
    clusters = LocalClusters(tmp_path)
    assert clusters.find("auto") is None
    clusters.note("self:1", None)
    assert [file.stem for file in tmp_path.iterdir()] == [str(os.getpid())]


def test_folder_of_another_user_is_not_read(
    clusters: LocalClusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters.note("10.0.0.1:6379", None)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert clusters.find("auto") is None


def test_auto_is_the_noted_cluster_with_its_token(clusters: LocalClusters, listening: str) -> None:
    clusters.note(listening, "token")
    env: dict[str, str] = {}
    assert resolve("auto", env, clusters) == listening
    assert env == {"RAY_AUTH_MODE": "token"}


def test_users_own_setting_wins(clusters: LocalClusters, listening: str) -> None:
    clusters.note(listening, "token")
    env = {"RAY_AUTH_MODE": "disabled"}
    resolve("auto", env, clusters)
    assert env == {"RAY_AUTH_MODE": "disabled"}


def test_address_in_the_environment_comes_first(clusters: LocalClusters, listening: str) -> None:
    clusters.note("127.0.0.1:1", "token")
    env = {"RAY_ADDRESS": listening}
    assert resolve("auto", env, clusters) == listening
    assert "RAY_AUTH_MODE" not in env


def test_nobody_at_an_address_is_told_at_once(clusters: LocalClusters, listening: str) -> None:
    port = int(listening.rpartition(":")[2])
    with pytest.raises(CommandError, match=r"no Ray cluster answers at 127\.0\.0\.2:"):
        resolve(f"127.0.0.2:{port}", {}, clusters)
    with pytest.raises(CommandError, match="no Ray cluster answers at nowhere:many"):
        resolve("nowhere:many", {}, clusters)


def test_dead_cluster_of_the_environment_is_told_at_once(clusters: LocalClusters) -> None:
    with pytest.raises(CommandError, match="no Ray cluster on this machine"):
        resolve("auto", {"RAY_ADDRESS": "127.0.0.1:1"}, clusters)
