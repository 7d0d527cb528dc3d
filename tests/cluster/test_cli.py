"""The command line: vLLM's spellings, sizes, aliases, files, and what is refused."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.arguments import human_int
from cluster.cli import main, parse
from cluster.config import DeploymentSpec
from cluster.options import ServeOptions, serve_options
from worker.config import SpeculationConfig


def options(*argv: str, env: dict[str, str] | None = None) -> ServeOptions:
    return serve_options(parse(["serve", *argv]), env or {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("32k", 32_000),
        ("32K", 32_768),
        ("1.5M", 1_572_864),
        ("1.5m", 1_500_000),
        ("25.6k", 25_600),
        ("2G", 2**31),
        ("1t", 10**12),
    ],
)
def test_sizes_have_suffixes(text: str, value: int) -> None:
    assert human_int(text) == value


@pytest.mark.parametrize("text", ["", "k", "1.3", "1.0001k", "-5", "1kk", "12 k", "0x10", "1e3"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
        human_int(text)


def test_defaults_are_those_of_the_runner() -> None:
    chosen = options()
    assert chosen.model is None
    assert chosen.tp_size is None and chosen.num_replicas == 1 and chosen.num_gateways == 1
    assert chosen.runner.max_model_len is None
    assert (chosen.runner.max_num_seqs, chosen.runner.max_num_batched_tokens) == (256, 2048)
    assert (chosen.host, chosen.port) == ("0.0.0.0", 8000)


def test_experts_are_whole_on_shards_where_that_is_asked_for() -> None:
    assert not options().runner.enable_expert_parallel
    chosen = options("org/model", "--enable-expert-parallel")
    assert chosen.runner.enable_expert_parallel
    spec = chosen.deployment("/m", ("m",), "cpu", 2)
    assert DeploymentSpec.from_json(spec.to_json()).runner.enable_expert_parallel


def test_vllm_spellings_reach_the_runner() -> None:
    line = (
        "org/model --tensor-parallel-size 4 --max-model-len 32k --gpu-memory-utilization 0.8 "
        "--kv-cache-memory-bytes 2G --num-gpu-blocks-override 100 --dtype half --block-size 32 "
        "--max-num-seqs 8 --max-num-batched-tokens 512 --no-enable-prefix-caching --max-logprobs 5"
    )
    chosen = options(*line.split())
    runner = chosen.runner
    assert (chosen.model, chosen.tp_size, chosen.max_logprobs) == ("org/model", 4, 5)
    assert chosen.enable_prefix_caching is False
    assert (runner.max_model_len, runner.memory_utilization) == (32_000, 0.8)
    assert (runner.kv_cache_bytes, runner.num_blocks) == (2**31, 100)
    assert (runner.dtype, runner.block_size) == ("float16", 32)
    assert (runner.max_num_seqs, runner.max_num_batched_tokens) == (8, 512)


@pytest.mark.parametrize(("text", "target"), [("auto", None), ("0", 0.0), ("37.5", 37.5)])
def test_target_between_tokens(text: str, target: float | None) -> None:
    assert options("--target-itl-ms", text).target_itl_ms == target
    assert options().target_itl_ms is None


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("auto", SpeculationConfig()),
        ("off", None),
        ('{"method": "ngram"}', SpeculationConfig()),
        (
            '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 6}',
            SpeculationConfig(4, 6, 6),
        ),
        (
            '{"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}',
            SpeculationConfig(prompt_lookup_max=4, prompt_lookup_min=2),
        ),
    ],
)
def test_speculation_as_in_vllm(text: str, config: SpeculationConfig | None) -> None:
    assert options("--speculative-config", text).speculation == config
    assert options().speculation == SpeculationConfig()


def test_speculation_reaches_the_deployment_and_survives_its_store() -> None:
    line = ["--target-itl-ms", "40", "--speculative-config", '{"method": "ngram"}']
    spec = options(*line).deployment("folder", ("m",), "cpu", 1)
    assert (spec.target_itl_ms, spec.speculation) == (40.0, SpeculationConfig())
    assert DeploymentSpec.from_json(spec.to_json()) == spec
    without = options("--speculative-config", "off").deployment("folder", ("m",), "cpu", 1)
    assert DeploymentSpec.from_json(without.to_json()).speculation is None


def test_file_may_spell_speculation_out(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("speculative-config:\n  method: ngram\n  num_speculative_tokens: 3\n")
    chosen = options("--config", str(file)).speculation
    assert chosen is not None and chosen.num_speculative_tokens == 3


@pytest.mark.parametrize("text", ["auto", "-1"])
def test_automatic_length_is_the_models_own(text: str) -> None:
    assert options("--max-model-len", text).runner.max_model_len is None


def test_short_and_other_names_mean_the_same() -> None:
    assert options("-tp", "2").tp_size == options("--tensor_parallel_size=2").tp_size == 2
    assert (
        options("--api-server-count", "3").num_gateways == options("--gateways", "3").num_gateways
    )


def test_several_served_names_in_order_without_repetition() -> None:
    assert options("--served-model-name", "b", "a", "b").served_names == ("b", "a")


def test_keys_come_from_flags_and_environment() -> None:
    env = {"SHOAL_API_KEY": "k3,k4", "VLLM_API_KEY": " k1 "}
    chosen = options("--api-key", "k1", "k2", "--api-key", "k3", env=env)
    assert chosen.api_keys == ("k1", "k2", "k3", "k4")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--enable-lora"], "unrecognized arguments: --enable-lora"),
        (["--pipeline-parallel-size", "2"], "--pipeline-parallel-size"),
        (["--max-num", "3"], "unrecognized arguments: --max-num"),  # no abbreviations
        (["--max-model-len", "long"], "--max-model-len"),
        (["--gpu-memory-utilization", "1.5"], "above 0 and at most 1"),
        (["--block-size", "15"], "--block-size"),
        (["--dtype", "int8"], "--dtype"),
        (["--port", "70000"], "not a port"),
        (["--tensor-parallel-size", "0"], "at least 1"),
        (["--shutdown-timeout", "-1"], "number of seconds"),
        (["--target-itl-ms", "fast"], "number of milliseconds"),
        (["--target-itl-ms", "-5"], "number of milliseconds"),
        (["--speculative-config", "on"], '"auto", "off" or a JSON object'),
        (["--speculative-config", '{"method": "eagle"}'], 'method must be "ngram"'),
        (["--speculative-config", "{}"], 'method must be "ngram"'),
        (["--speculative-config", '{"method": "ngram", "model": "x"}'], "model: not known"),
        (
            ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 0}'],
            "num_speculative_tokens must be from 1 to 64",
        ),
        (
            [
                "--speculative-config",
                '{"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 3}',
            ],
            "prompt_lookup_min (3) is above prompt_lookup_max (2)",
        ),
    ],
)
def test_a_mistake_is_named(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["serve", *argv])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_detached_deployment_needs_a_cluster_that_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--detach"]) == 1
    assert "--detach needs --address" in capsys.readouterr().err
    assert options("--detach", "--address", "auto", "--gateways", "0").detach


def test_file_gives_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: org/from-file\nport: 9000\ntensor_parallel_size: 2\nmax-model-len: 8k\n"
        "served-model-name: [a, b]\nenable-prefix-caching: false\ndetach: false\n"
    )
    chosen = options("--config", str(file), "--port", "9001")
    assert (chosen.model, chosen.port, chosen.tp_size) == ("org/from-file", 9001, 2)
    assert chosen.served_names == ("a", "b")
    assert chosen.runner.max_model_len == 8000
    assert not chosen.enable_prefix_caching and not chosen.detach
    assert options("org/other", "--config", str(file)).model == "org/other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enable-lora: true", "--enable-lora"),
        ("- just\n- a list", "flag: value"),
        ("port: [", "--config"),
        ("port: many", "not a port"),
    ],
)
def test_mistakes_in_a_file_are_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        parse(["serve", "--config", str(file)])
    assert message in capsys.readouterr().err


def test_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["serve", "--config", str(tmp_path / "no.yaml")])
    assert "no.yaml" in capsys.readouterr().err


def test_deployment_carries_the_options() -> None:
    chosen = options("--replicas", "3", "--routing-policy", "least_loaded")
    spec = chosen.deployment("/models/m", ("m", "n"), "cuda", 2)
    assert (spec.name, spec.served_names) == ("m", ("m", "n"))
    assert (spec.runner.model_path, spec.runner.device) == ("/models/m", "cuda")
    assert (spec.num_replicas, spec.tp_size, spec.gpus_per_rank) == (3, 2, 1.0)
    assert spec.policy == "least_loaded"
    assert chosen.deployment("/models/m", ("m",), "cpu", 1).gpus_per_rank == 0.0


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("shoal ")


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom cluster.cli import main\n"
        "try: main(['serve', '--help'])\nexcept SystemExit: pass\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(run.stderr.split())
    assert "--tensor-parallel-size" in run.stdout
    assert not loaded & {"ray", "torch", "grpc", "rich", "yaml", "huggingface_hub", "psutil"}
