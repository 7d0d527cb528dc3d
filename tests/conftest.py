"""Options of the whole suite, and what must be settled before anything is imported."""

import os
from pathlib import Path

import pytest

# Without a GPU Triton's kernels run in its interpreter. Triton decides when it is first imported,
# and half a dozen libraries import it.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--family-table",
        type=Path,
        help="write what the parity tests of model families measured, as a Markdown table",
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--family-table")
    if path is not None:
        # Imports torch: not for those who run something else.
        from tests.worker.models.family_table import TABLE

        path.write_text(TABLE.markdown(), encoding="utf-8")
