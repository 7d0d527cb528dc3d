"""Who may import whom: the table of ARCHITECTURE.md held against the code.

Two checks: an AST walk over every import statement (also those inside functions), and what really
gets loaded when an entry module is imported in a fresh interpreter.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The cluster's pure core: decisions without I/O.
CLUSTER_CORE = (
    "actor_names", "binding", "config", "drain_rate", "epochs", "errors", "fair_queue", "fleet",
    "placement_desk", "placement_queue", "placement_request", "policies", "prefix_index",
    "queue_settings", "rank_progress", "registry", "replica_record", "startup_log", "state",
    "status_view",
)  # fmt: skip

# area (longest prefix wins) -> modules it must not import, at top level or inside a function
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "protos": ("worker", "cluster", "gateway", "torch", "ray"),
    "gateway": ("torch", "ray", "transformers", "worker", "cluster"),
    "worker": ("ray", "cluster", "gateway"),
    "worker/engine": ("torch", "ray", "grpc", "numpy", "worker.runner", "worker.layers",
                      "worker.attention", "worker.models", "worker.parallel", "worker.wire",
                      "worker.servicer", "worker.actor", "cluster", "gateway"),
    **{
        f"worker/{area}": ("ray", "grpc", "cluster", "gateway", "worker.engine.batch_scheduler",
                           "worker.engine.block_pool", "worker.engine.engine", "worker.engine.loop")
        for area in ("parallel", "runner", "layers", "attention", "kernels", "models")
    },
    "worker/models/config.py": ("torch", "ray", "grpc"),
    "worker/memory_plan.py": ("torch", "ray", "grpc"),
    "worker/servicer.py": ("torch", "ray", "cluster", "gateway", "worker.runner", "worker.models"),
    "worker/wire.py": ("torch", "ray", "cluster", "gateway", "worker.runner", "worker.models"),
    "worker/reporter.py": ("torch", "ray", "cluster", "gateway", "worker.runner", "worker.models"),
    "worker/actor.py": ("cluster", "gateway"),
    "cluster": ("torch", "gateway", "fastapi"),
    **{
        f"cluster/{core}.py": ("ray", "grpc", "torch", "gateway")
        for core in CLUSTER_CORE
    },
}  # fmt: skip

# What importing a module must not load, however indirectly.
LOADS_NOT: dict[str, tuple[str, ...]] = {
    "gateway.app": ("torch", "ray", "transformers", "worker", "cluster"),
    "worker.engine.engine": ("torch", "ray", "grpc", "numpy"),
    "worker.actor": ("torch", "cluster", "gateway"),
    "worker.servicer": ("torch", "ray"),
    "worker.memory_plan": ("torch", "ray", "grpc"),
    "cluster.registry": ("ray", "grpc", "torch"),
    "cluster.placement_queue": ("ray", "grpc", "torch"),
    "cluster.cli": ("torch", "gateway", "ray"),
}


def sources() -> list[Path]:
    areas = ("protos", "worker", "cluster", "gateway")
    files = (f for area in areas for f in (ROOT / area).rglob("*.py"))
    return sorted(f for f in files if "_pb2" not in f.name)


def imported_modules(path: Path) -> Iterator[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden_for(path: Path) -> tuple[str, ...]:
    name = path.relative_to(ROOT).as_posix()
    areas = [a for a in FORBIDDEN if name == a or name.startswith(a + "/")]
    return FORBIDDEN[max(areas, key=len)] if areas else ()


def is_within(module: str, root: str) -> bool:
    return module == root or module.startswith(root + ".")


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_module_imports_only_what_its_area_may(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    broken = sorted(
        {
            f"{module} (forbidden: {root})"
            for module in imported_modules(path)
            for root in forbidden_for(path)
            if is_within(module, root)
        }
    )
    assert not broken, f"{name} imports {broken}"


@pytest.mark.parametrize("module", sorted(LOADS_NOT))
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=True,
    )
    loaded = set(run.stdout.split())
    assert not loaded & set(LOADS_NOT[module])


def test_every_rule_names_an_existing_area() -> None:
    later = {"worker/kernels"}  # a room that opens with its first kernel
    missing = [area for area in FORBIDDEN if area not in later and not (ROOT / area).exists()]
    assert not missing
