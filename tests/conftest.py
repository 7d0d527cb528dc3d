"""Options of the whole suite."""

from pathlib import Path

import pytest


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
