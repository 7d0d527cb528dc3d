"""Compiles what a launch would run for an H200, on a machine without one, instead of running it.

Triton brings its assembler along, so a process without the interpreter can translate a kernel to
machine code for any card. `compiled_launches` gathers what the launches inside it need there.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TARGET = GPUTarget("cuda", 90, 32)
_INSTRUCTIONS = ("wgmma", "mma.sync", "cp.async")
_OPTIONS = ("num_warps", "num_stages")
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32",
          torch.int32: "i32", torch.int64: "i64", torch.bool: "i1"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one launch's machine code takes."""

    name: str
    num_warps: int
    num_stages: int
    shared_bytes: int
    num_registers: int
    instructions: list[str]  # of those that say whether it is fast
    spilled_bytes: int  # of registers, to memory


@contextlib.contextmanager
def compiled_launches() -> Iterator[list[Compiled]]:
    """Launches inside compile and do nothing else; each different one is listed once."""
    found: list[Compiled] = []
    seen: set[str] = set()

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        source, options = _source(kernel, args, kwargs)
        key = f"{source.hash()} {options}"
        if key not in seen:
            seen.add(key)
            found.append(_compiled(kernel.__name__, source, options))

    with mock.patch.object(JITFunction, "run", run):
        yield found


def _source(
    kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ASTSource, dict[str, int]]:
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    names = [parameter.name for parameter in kernel.params]
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    assert set(values) == set(names), f"{set(names) ^ set(values)} of {kernel.__name__}"
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        is_constant = parameter.is_constexpr or (type(value) is int and value == 1)
        signature[parameter.name] = "constexpr" if is_constant else _type(value)
        if is_constant:
            constants[(i,)] = value
        elif isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), options


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _compiled(name: str, source: ASTSource, options: dict[str, int]) -> Compiled:
    code = triton.compile(source, target=_TARGET, options=dict(options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        dump = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run(
            [dump, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return Compiled(
        name,
        options.get("num_warps", 4),
        options.get("num_stages", 3),
        code.metadata.shared,
        registers,
        [name for name in _INSTRUCTIONS if name in code.asm["ptx"]],
        stack,
    )
