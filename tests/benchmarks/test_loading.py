"""What the loading benchmark says of the loads that it has measured."""

from pathlib import Path

from benchmarks.loading import describe, drop_from_cache, read_all
from benchmarks.loading_rank import COPY, KERNELS, PARAMETERS, Loaded


def loaded(load_s: float, again_s: float = 0.5, peak_bytes: int = 10**9) -> Loaded:
    return Loaded(load_s, again_s, cpu_s=1.5, own_bytes=10**9, peak_bytes=peak_bytes)


def test_slowest_rank_and_median_repeat_count() -> None:
    loads = {
        COPY: [[loaded(1.0), loaded(0.5)]] * 3,
        PARAMETERS: [[loaded(2.0), loaded(0.1)], [loaded(0.2), loaded(4.0)], [loaded(8.0)] * 2],
        KERNELS: [[loaded(1.25), loaded(1.0, peak_bytes=11 * 10**8)]] * 3,
    }
    lines = describe(2, 2 * 10**9, [1.0, 3.0, 1.0], loads).splitlines()
    assert lines[0] == "TP=2: 2.00 GB; cat 2.00 GB/s; copied to fresh memory 2.00 GB/s"
    assert "torch's parameters  0.50 GB/s =  25% of cat,  25% of the copy" in lines[1]
    assert "a rank's peak 50% of the files" in lines[1]
    assert "packed for kernels  1.60 GB/s =  80% of cat,  80% of the copy" in lines[2]
    assert "into memory at hand  4.00 GB/s = 200% of cat; 3.00 CPU seconds" in lines[2]
    assert "a rank's peak 55% of the files" in lines[2]


def test_file_dropped_from_the_cache_is_still_read(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 16))
    drop_from_cache([file])
    assert read_all([file]) > 0
    assert file.read_bytes() == bytes(1 << 16)
