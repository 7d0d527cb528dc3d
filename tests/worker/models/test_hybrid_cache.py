"""Models that mix windowed layers with ones that see all, through the engine: sequences far longer
than the windows, over a cache that would not hold them whole.
"""

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.worker.models.harness import TINY, make_checkpoint, make_runner, random_tokens
from tests.worker.models.served import BLOCK_SIZE, assert_greedy, make_engine, run_engine
from tests.worker.simulated_group import SimulatedGroup, run_ranks
from worker.engine.step import StepPlan, StepResult
from worker.errors import MemoryPlanError
from worker.runner.model_runner import ModelRunner

WINDOW = 21
SLIDING, FULL = "sliding_attention", "full_attention"
ROPES = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}


def config_of(kind: str, architecture: str, layer_types: list[str], **fields: Any) -> Any:
    import transformers

    settings = {
        **TINY,
        "num_hidden_layers": len(layer_types),
        "layer_types": layer_types,
        "head_dim": 16,
        "sliding_window": WINDOW,
        **fields,
    }
    return getattr(transformers, kind)(**settings, architectures=[architecture])


def gemma2() -> Any:
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}
    return config_of("Gemma2Config", "Gemma2ForCausalLM", [SLIDING, FULL] * 2, **caps)


def gemma3() -> Any:
    layers = [*[SLIDING] * 5, FULL]
    return config_of("Gemma3TextConfig", "Gemma3ForCausalLM", layers, rope_parameters=ROPES)


def gemma3_two_full_groups() -> Any:
    layers = [SLIDING, FULL, SLIDING, FULL, SLIDING]
    return config_of("Gemma3TextConfig", "Gemma3ForCausalLM", layers, rope_parameters=ROPES)


def gemma3_uneven() -> Any:
    """Four layers see all, seven a window: the last group has a place without a layer."""
    layers = [SLIDING, FULL, SLIDING] * 3 + [SLIDING, FULL]
    return config_of("Gemma3TextConfig", "Gemma3ForCausalLM", layers, rope_parameters=ROPES)


def gpt_oss() -> Any:
    experts = {"num_local_experts": 6, "num_experts_per_tok": 2, "swiglu_limit": 1.5}
    rope = {"rope_type": "default", "rope_theta": 150000.0}
    layers = [SLIDING, FULL] * 2
    return config_of("GptOssConfig", "GptOssForCausalLM", layers, **experts, rope_parameters=rope)


def olmo3() -> Any:
    """Of several ranks torch computes the projections, whose norm is as wide as all of them, and
    the kernels the attention: three groups of one kind.
    """
    rope = {"rope_type": "default", "rope_theta": 5e5}
    ropes = {FULL: rope, SLIDING: rope}
    layers = [SLIDING, SLIDING, SLIDING, FULL]
    return config_of("Olmo3Config", "Olmo3ForCausalLM", layers, rope_parameters=ropes)


# What a model is made of, its groups, and blocks for each in the pool: they hold less than one of
# the sequences below if no layer gives any back.
MODELS = [
    pytest.param(gemma2, (None, WINDOW), 40, id="Gemma 2"),
    pytest.param(gemma3, (None, *[WINDOW] * 5), 30, id="Gemma 3"),
    pytest.param(
        gemma3_two_full_groups, (None, None, *[WINDOW] * 3), 36, id="Gemma 3, two full groups"
    ),
    pytest.param(gemma3_uneven, (None, WINDOW, WINDOW), 36, id="Gemma 3, uneven"),
    pytest.param(gpt_oss, (None, WINDOW), 40, id="gpt-oss"),
]


def prompts() -> dict[int, list[int]]:
    """Long and short, some with common beginnings of several lengths."""
    common = random_tokens(150, seed=1)
    cuts = {1: 150, 3: 120, 4: 150, 5: 61, 6: 33}
    shared = {h: common[:cut] + random_tokens(5 + h, seed=h) for h, cut in cuts.items()}
    return {**shared, 2: random_tokens(9, seed=2), 7: random_tokens(130, seed=7)}


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize(("make_config", "windows", "num_blocks"), MODELS)
def test_sequences_longer_than_the_cache_match_transformers(
    tmp_path: Path, make_config: Any, windows: Any, num_blocks: int, is_native: bool
) -> None:
    model = make_checkpoint(tmp_path, make_config())
    runner = make_runner(tmp_path, num_blocks=num_blocks, native_kernels=is_native)
    assert runner.kv_groups.windows == windows
    assert runner.max_model_len == 256 > num_blocks * BLOCK_SIZE
    engine = make_engine(runner, num_blocks, budget=32)
    asked = prompts()
    for _ in range(2):  # once more, over what is left in the prefix cache
        for handle, tokens in run_engine(engine, asked, max_tokens=40).items():
            assert len(tokens) == 40
            assert_greedy(model, asked[handle], tokens)
    counters = engine.counters()
    assert counters.preemptions > 0 and counters.prefix_cache_hits > 0


@pytest.mark.parametrize(("num_between", "num_hit"), [(0, 128), (40, 128), (70, 0), (140, 0)])
def test_prefix_is_found_only_while_all_layers_have_what_they_see_of_it(
    tmp_path: Path, num_between: int, num_hit: int
) -> None:
    model = make_checkpoint(tmp_path, gemma3())
    runner = make_runner(tmp_path, num_blocks=30)
    engine = make_engine(runner, 30, budget=32)
    first = random_tokens(140, seed=1)
    run_engine(engine, {1: first}, max_tokens=3)
    if num_between:
        run_engine(engine, {2: random_tokens(num_between, seed=2)}, max_tokens=3)
    before = engine.counters().prefix_cache_hits
    again = first[:130] + random_tokens(10, seed=3)
    tokens = run_engine(engine, {3: again}, max_tokens=20)[3]
    assert_greedy(model, again, tokens)
    assert engine.counters().prefix_cache_hits - before == num_hit


def test_plan_counts_each_group_by_what_it_keeps(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, gemma3())
    roomy = make_runner(tmp_path, num_blocks=None, max_num_batched_tokens=32).memory_plan
    # Of each sequence: 64 blocks that see all, and five times 15 of a window, a chunk and one more.
    assert roomy.num_blocks == -(-8 * (64 + 5 * 15) // 6)
    # Token by token a window of 21 needs seven blocks at most.
    plan = make_runner(tmp_path, num_blocks=17, max_model_len=256).memory_plan
    assert plan.num_blocks * 6 >= 64 + 5 * 7 > 16 * 6
    assert plan.max_concurrency == 17 * 6 / (64 + 5 * 7)
    assert f"keep the last {WINDOW} in 5 of 6 layers" in "\n".join(plan.describe())
    with pytest.raises(MemoryPlanError, match="less than one sequence of 256 tokens"):
        make_runner(tmp_path, num_blocks=16, max_model_len=256)


class Relay:
    """An executor of rank 0 that lets the other rank follow."""

    def __init__(self, runner: ModelRunner, plans: "SimpleQueue[StepPlan | None]") -> None:
        self._runner, self._plans = runner, plans

    def execute(self, plan: StepPlan) -> StepResult:
        self._plans.put(plan)
        return self._runner.execute(plan)

    def close(self) -> None:
        self._plans.put(None)


@pytest.mark.parametrize("make_config", [gemma3, gpt_oss, olmo3])
def test_two_ranks_serve_the_same_tokens(tmp_path: Path, make_config: Any) -> None:
    model = make_checkpoint(tmp_path, make_config())
    plans: SimpleQueue[StepPlan | None] = SimpleQueue()
    asked = {handle: prompt for handle, prompt in prompts().items() if handle < 5}

    def run(group: SimulatedGroup) -> dict[int, list[int]]:
        runner = make_runner(tmp_path, group, num_blocks=40)
        if group.rank > 0:
            while (plan := plans.get(timeout=30)) is not None:
                runner.execute(plan)
            return {}
        engine = make_engine(runner, 40, 32, Relay(runner, plans))
        try:
            return run_engine(engine, asked, max_tokens=20)
        finally:
            engine.close()

    for handle, tokens in run_ranks(2, run)[0].items():
        assert_greedy(model, asked[handle], tokens)
