"""The flags of `shoal serve`: vLLM's spellings where it has the flag, sizes with suffixes, YAML.

Standard library only (YAML is imported when a file is given): `shoal --help` answers at once.
`cluster.cli` builds its parser from here; `cluster.options` turns the result into plain data.
"""

import argparse
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from cluster.config import PolicyName
from cluster.speculation_flag import speculation
from worker.config import SpeculationConfig

DTYPES = ("auto", "float32", "float", "bfloat16", "float16", "half")
BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)")


def human_int(text: str) -> int:
    """As vLLM reads them: 32k is 32,000 and 32K is 32,768; fractions must come out whole (1.5M)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number such as 4096, 32k or 1.5M"
        )
    number, suffix = match.groups()
    base = 1024 if suffix.isupper() else 1000
    value = Decimal(number) * base ** ("kmgt".index(suffix.lower()) + 1 if suffix else 0)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def positive_int(text: str) -> int:
    value = human_int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 1")
    return value


def model_len(text: str) -> int | None:
    """None: the model's own limit ("auto" or "-1")."""
    return None if text.strip() in ("auto", "-1") else positive_int(text)


def port_number(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port (0 to 65535; 0 takes any free one)"
        )
    return value


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return value


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def milliseconds(text: str) -> float | None:
    """None: chosen to suit the model ("auto")."""
    if text.strip() == "auto":
        return None
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not "auto" or a number of milliseconds'
        ) from None


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(parser)
    _add_engine_arguments(parser)
    _add_step_arguments(parser)
    _add_endpoint_arguments(parser)
    _add_cluster_arguments(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="folder or hub id; without it, the embedded demo model",
    )
    add(
        "--config",
        metavar="FILE",
        help="YAML with any of these flags; the command line wins over it",
    )
    add(
        "--served-model-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names clients may use (default: MODEL)",
    )
    add("--revision", help="branch, tag or commit on the hub")
    add(
        "--download-dir",
        metavar="DIR",
        help="where hub models are kept (default: the hub's own cache)",
    )
    add(
        "--hf-token",
        metavar="TOKEN",
        help="access token for the hub (default: HF_TOKEN or the stored login)",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of weights and activations (default: %(default)s)",
    )
    add(
        "--max-model-len",
        type=model_len,
        metavar="N",
        help="tokens of prompt and answer; 32k, auto (default)",
    )


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    add = group.add_argument
    add(
        "--tensor-parallel-size",
        "-tp",
        type=positive_int,
        metavar="N",
        help="shards of one replica (default: 1)",
    )
    add(
        "--enable-expert-parallel",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="shards have experts whole, not a slice of every one (default: off)",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="(default: a GPU where there is one)",
    )
    add(
        "--gpu-memory-utilization",
        type=fraction,
        default=0.9,
        metavar="F",
        help="part of device memory for weights and cache (default: %(default)s)",
    )
    add(
        "--kv-cache-memory-bytes",
        type=positive_int,
        metavar="N",
        help="KV cache of one shard; 2G, 512M",
    )
    add(
        "--num-gpu-blocks-override",
        type=positive_int,
        metavar="N",
        help="KV blocks, instead of measuring",
    )
    add("--attention-backend", default="auto", metavar="NAME", help="(default: %(default)s)")
    add(
        "--num-threads",
        type=positive_int,
        metavar="N",
        help="CPU threads of a shard (default: its share of cores, 1 for a small model)",
    )
    add(
        "--native-kernels",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on CPUs: Shoal's own kernels, where there are any, instead of torch's (default: on)",
    )
    add(
        "--enforce-eager",
        action="store_true",
        help="on GPUs: launch kernels one by one, not as CUDA graphs",
    )
    add(
        "--async-scheduling",
        action=argparse.BooleanOptionalAction,
        help="plan a step while the one before runs (default: on GPUs)",
    )


def _add_step_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("steps")
    add = group.add_argument
    add(
        "--block-size",
        type=int,
        choices=BLOCK_SIZES,
        default=16,
        help="tokens a KV block (default: %(default)s)",
    )
    add(
        "--max-num-seqs",
        type=positive_int,
        default=256,
        metavar="N",
        help="sequences a step (default: %(default)s)",
    )
    add(
        "--max-num-batched-tokens",
        type=positive_int,
        default=2048,
        metavar="N",
        help="tokens a step (default: %(default)s)",
    )
    add(
        "--target-itl-ms",
        type=milliseconds,
        metavar="MS",
        help="between a stream's tokens while prompts come in; 0: no limit (default: auto)",
    )
    add(
        "--speculative-config",
        type=speculation,
        default=SpeculationConfig(),
        metavar="JSON",
        help="guess tokens from repetitions: auto (default), off or "
        '{"method": "ngram", "num_speculative_tokens": 8, ...}',
    )
    add(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="share KV blocks of equal prompt beginnings (default: on)",
    )
    add(
        "--max-logprobs",
        type=int,
        default=20,
        metavar="N",
        help="most a request may ask (default: %(default)s)",
    )


def _add_endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("endpoint")
    add = group.add_argument
    add("--host", default="0.0.0.0", help="(default: all interfaces)")
    add("--port", type=port_number, default=8000, help="(default: %(default)s; 0 takes a free one)")
    add(
        "--api-key",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="clients must send one of these (also from SHOAL_API_KEY or VLLM_API_KEY)",
    )
    add("--root-path", default="", metavar="PATH", help="prefix that a proxy in front takes away")
    add(
        "--gateways",
        "--api-server-count",
        type=human_int,
        default=1,
        metavar="N",
        dest="gateways",
        help="HTTP processes on the port; 0: none here (default: %(default)s)",
    )
    add("--uvicorn-log-level", choices=LOG_LEVELS, default="warning", help="(default: %(default)s)")
    add(
        "--shutdown-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds running requests may take after Ctrl-C (default: %(default)g)",
    )


def _add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cluster")
    add = group.add_argument
    add(
        "--replicas",
        type=positive_int,
        default=1,
        metavar="N",
        help="copies of the model (default: %(default)s)",
    )
    add(
        "--address",
        metavar="HOST:PORT",
        help='join this Ray cluster ("auto": the one on this machine)',
    )
    add(
        "--detach",
        action="store_true",
        help="with --address: leave when ready, the deployment stays",
    )
    add(
        "--routing-policy",
        choices=get_args(PolicyName),
        default="prefix_aware",
        help="(default: %(default)s)",
    )
    add(
        "--max-num-queued-reqs",
        type=positive_int,
        default=4096,
        metavar="N",
        help="requests that may wait for a replica (default: %(default)s)",
    )
    add(
        "--scheduler-port",
        type=port_number,
        default=0,
        metavar="PORT",
        help="gRPC (default: a free one)",
    )
    add(
        "--metrics-port",
        type=port_number,
        metavar="PORT",
        help="the scheduler's Prometheus port (default: none)",
    )
    add(
        "--start-timeout",
        type=seconds,
        default=1800.0,
        metavar="S",
        help="seconds until ready, at most (default: %(default)g)",
    )


def dashed(argv: Sequence[str]) -> list[str]:
    """Flags may be written with underscores, as in `--max_model_len`."""
    return [_dashed(arg) for arg in argv]


def _dashed(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value


def config_arguments(path: Path) -> list[str]:
    """The flags in a YAML file, as a command line.

    Raises: ValueError when the file cannot be read as a mapping of flags.
    """
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ValueError(f"--config {path}: {e}") from e
    if not isinstance(loaded, dict):
        raise ValueError(f"--config {path}: expected `flag: value` lines")
    model = loaded.pop("model", None)
    flags = [part for key, value in loaded.items() for part in _flag(str(key), value)]
    return [*([] if model is None else [str(model)]), *flags]


def _flag(key: str, value: Any) -> list[str]:
    flag = "--" + key.replace("_", "-")
    if value is None:
        return []
    if value is False:
        return [flag.replace("--", "--no-", 1)] if key.startswith("enable") else []
    if value is True:
        return [flag]
    if isinstance(value, dict):
        return [flag, json.dumps(value)]
    return [flag, *map(str, value if isinstance(value, list) else [value])]
