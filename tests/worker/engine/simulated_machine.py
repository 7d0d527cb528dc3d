"""A machine whose steps take a time that is known, on a clock that they move; and who waits how
long for what on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from tests.fake_executor import FakeExecutor
from tests.worker.engine.harness import Clock, new_request, prompt_of
from worker.config import EngineConfig, SpeculationConfig
from worker.engine.engine import Engine
from worker.engine.request import RequestOutput
from worker.engine.step import StepPlan, StepResult


@dataclass(frozen=True)
class Costs:
    """Seconds; about those of a 135M model on two cores."""

    step: float = 0.004
    prefill_token: float = 0.0005
    prefill_pair: float = 1e-7
    decode: float = 0.002
    context_token: float = 5e-7
    draft: float = 0.001


@dataclass
class Machine:
    """Implements Executor."""

    clock: Clock
    executor: FakeExecutor
    costs: Costs = Costs()
    slowness: Callable[[], float] = lambda: 1.0  # drawn once a step
    step_times: list[float] = field(default_factory=list)

    def execute(self, plan: StepPlan) -> StepResult:
        costs, seconds = self.costs, self.costs.step
        for s in plan.sequences:
            if s.is_sampled and s.num_tokens == 1 + s.num_drafts:
                seconds += costs.decode + costs.context_token * s.start
                seconds += costs.draft * s.num_drafts
            else:
                pairs = s.num_tokens * (s.start + s.num_tokens / 2)
                seconds += costs.prefill_token * s.num_tokens + costs.prefill_pair * pairs
        self.step_times.append(seconds * self.slowness())
        self.clock.now_s += self.step_times[-1]
        return self.executor.execute(plan)

    def close(self) -> None:
        self.executor.close()


class Simulation:
    """An engine on a Machine, and when each request's tokens came."""

    def __init__(
        self,
        target_itl_ms: float | None = 0,
        costs: Costs | None = None,
        slowness: Callable[[], float] = lambda: 1.0,
        speculation: SpeculationConfig | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        memory: int | None = None,
    ) -> None:
        self.clock = Clock()
        executor = FakeExecutor(2048, 16, 50, max_num_seqs, max_num_batched_tokens, memory=memory)
        self.machine = Machine(self.clock, executor, costs or Costs(), slowness)
        config = EngineConfig(
            num_blocks=2048,
            block_size=16,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=8192,
            vocab_size=50,
            eos_token_ids=(),
            target_itl_ms=target_itl_ms,
            speculation=speculation,
        )
        self.engine = Engine(config, self.machine, self.clock)
        self.arrivals: dict[int, float] = {}
        self.times: dict[int, list[float]] = {}

    def add(self, handle: int, num_tokens: int, max_tokens: int, start: int | None = None) -> None:
        prompt = [handle % 50, *prompt_of(num_tokens - 1, start=handle if start is None else start)]
        self.arrivals[handle] = self.clock()
        self.times[handle] = []
        self.engine.add(new_request(handle, prompt, max_tokens, arrival_s=self.clock()))

    def step(self) -> list[RequestOutput]:
        outputs = self.engine.step()
        for output in outputs:
            self.times[output.handle] += [self.clock()] * len(output.token_ids)
        return outputs

    def run(self, num_steps: int | None = None) -> None:
        """Until idle, or so many steps."""
        while self.engine.has_work and num_steps != 0:
            self.step()
            num_steps = None if num_steps is None else num_steps - 1

    def gaps_ms(self, handle: int, since_s: float = 0.0) -> list[float]:
        """Between the tokens that came after `since_s`, ascending."""
        times = [t for t in self.times[handle] if t >= since_s]
        return sorted(1000 * (b - a) for a, b in pairwise(times))

    def ttft_s(self, handle: int) -> float:
        return self.times[handle][0] - self.arrivals[handle]


def p99(values: list[float]) -> float:
    return values[min(int(len(values) * 0.99), len(values) - 1)]
