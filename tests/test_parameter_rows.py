"""The table of parameters is whole: each field has a test of what it does, and each test exists."""

import ast
from functools import cache
from pathlib import Path

import pytest

from gateway.schemas.chat import ChatRequest
from gateway.schemas.completion import CompletionRequest
from tests.parameter_rows import ROWS

ROOT = Path(__file__).parents[1]


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


def test_every_field_of_a_request_has_a_row() -> None:
    assert set(ROWS) == set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)


@pytest.mark.parametrize("name", ROWS)
def test_the_tests_of_a_row_exist(name: str) -> None:
    assert ROWS[name]
    for row in ROWS[name]:
        path, _, test = row.partition("::")
        assert (ROOT / path).is_file(), row
        assert not test or test in functions_of(path), row
