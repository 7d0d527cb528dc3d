"""Our kernels become machine code that an H200 can run, at the sizes of real models.

What a machine without a card can know of the compiled kernels: that they compile, fit into the
shared memory, keep their numbers in registers, and use the instructions that make them fast.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED_BYTES = 227 << 10  # that a program may have
# A few registers may be kept in memory; more cost time at every key.
SPILLED_BYTES = 256

FAST = ("llama", "mixture")
OTHERS = ("mpt", "gpt_oss", "gemma", "deepseek", "odd_heads")


def compiled(*models: str) -> list[dict[str, Any]]:
    env = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1"}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker.hopper_launches", *models],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kernels: list[dict[str, Any]]) -> None:
    assert kernels
    for kernel in kernels:
        assert kernel["shared_bytes"] <= SHARED_BYTES, kernel
        assert kernel["spilled_bytes"] <= SPILLED_BYTES, kernel


def test_kernels_of_common_models_compile() -> None:
    kernels = compiled(*FAST)
    check(kernels)
    prompts = [k for k in kernels if k["name"] == "paged_attention_kernel" and k["num_warps"] == 8]
    assert prompts and all({"wgmma", "cp.async"} <= set(k["instructions"]) for k in prompts)
    products = [k for k in kernels if k["name"] == "_product_kernel"]
    assert len(products) >= 6 and all("cp.async" in k["instructions"] for k in products)


@pytest.mark.slow
@pytest.mark.parametrize("model", OTHERS)
def test_kernels_of_other_models_compile(model: str) -> None:
    check(compiled(model))
