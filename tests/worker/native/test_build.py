"""Libraries are found, compiled once, and their absence is told apart."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from worker.errors import NativeBuildError
from worker.native import build

pytestmark = pytest.mark.skipif(not build.usable_variants(), reason="no kernels for this CPU")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is packaged, one small source, an empty cache."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "one.cc").write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(build, "_SOURCES", sources)
    monkeypatch.setattr(build, "_PACKAGED", tmp_path / "lib")
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_library_is_compiled_once_and_found_again(elsewhere: Path) -> None:
    variant = build.usable_variants()[0]
    path = build.library_path(variant)
    assert path.is_relative_to(elsewhere / "cache")
    written = path.stat().st_mtime_ns
    assert build.library_path(variant) == path
    assert path.stat().st_mtime_ns == written


def test_changed_source_gets_a_library_of_its_own(elsewhere: Path) -> None:
    variant = build.usable_variants()[0]
    first = build.library_path(variant)
    (elsewhere / "csrc" / "one.cc").write_text('extern "C" int one() { return 2; }')
    assert build.library_path(variant) != first


def test_packaged_library_is_preferred(elsewhere: Path) -> None:
    assert build.main() == 0
    variant = build.usable_variants()[0]
    assert build.library_path(variant).parent == elsewhere / "lib"
    assert build.can_have_library()
    assert not (elsewhere / "cache").exists()


def test_processes_that_start_together_share_one_library(elsewhere: Path) -> None:
    variant = build.usable_variants()[0]
    with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
        paths = list(pool.map(build.library_path, [variant] * 3))
    assert len(set(paths)) == 1
    assert paths[0].exists()
    assert [p.suffix for p in paths[0].parent.iterdir() if p.suffix == ".so"] == [".so"]


def test_missing_compiler_is_a_build_error(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(elsewhere))
    with pytest.raises(NativeBuildError, match=r"no C\+\+ compiler"):
        build.library_path(build.usable_variants()[0])
    assert not build.can_have_library()


def test_compilers_words_are_told(elsewhere: Path) -> None:
    (elsewhere / "csrc" / "one.cc").write_text("int one() { return nothing; }")
    with pytest.raises(NativeBuildError, match="nothing"):
        build.library_path(build.usable_variants()[0])
    assert not list((elsewhere / "cache").rglob("*.so"))
