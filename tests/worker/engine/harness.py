"""An engine over a FakeExecutor, and what its outputs add up to."""

from collections import defaultdict
from collections.abc import Hashable
from typing import Any

from tests.fake_async_executor import FakeAsyncExecutor
from tests.fake_executor import FakeExecutor, generate_alone
from worker.config import EngineConfig, SpeculationConfig
from worker.engine.engine import Engine
from worker.engine.kv_footprint import KVFootprint
from worker.engine.lookahead_engine import engine_for
from worker.engine.request import NewRequest, RequestOutput
from worker.engine.sampling_params import SamplingParams

VOCAB_SIZE = 50


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Harness:
    """Adds requests, steps, and remembers each one's tokens and end."""

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 64,
        max_model_len: int = 128,
        max_num_waiting: int = 1000,
        enable_prefix_caching: bool = True,
        windows: tuple[int | None, ...] = (None,),
        speculation: SpeculationConfig | None = None,
        target_itl_ms: float | None = None,
        memory: int | None = None,
        looks_ahead: bool = False,
    ) -> None:
        """`looks_ahead`: the executor takes a step while another runs."""
        self.memory = memory
        self.config = EngineConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(),
            windows=windows,
            enable_prefix_caching=enable_prefix_caching,
            max_num_waiting=max_num_waiting,
            speculation=speculation,
            target_itl_ms=target_itl_ms,
        )
        executor_class = FakeAsyncExecutor if looks_ahead else FakeExecutor
        self.executor = executor_class(
            num_blocks,
            block_size,
            VOCAB_SIZE,
            max_num_seqs,
            max_num_batched_tokens,
            windows=windows,
            memory=memory,
        )
        self.clock = Clock()
        self.engine: Engine = engine_for(self.config, self.executor, self.clock)
        self.added: dict[int, NewRequest] = {}
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.ends: dict[int, RequestOutput] = {}
        self.outputs: dict[int, list[RequestOutput]] = defaultdict(list)

    def add(self, handle: int, prompt: list[int], max_tokens: int = 4, **fields: Any) -> None:
        new = new_request(handle, prompt, max_tokens, arrival_s=self.clock(), **fields)
        self.added[handle] = new
        self.engine.add(new)

    def step(self) -> list[RequestOutput]:
        outputs = self.engine.step()
        for output in outputs:
            assert output.handle not in self.ends, "an output after the end"
            self.outputs[output.handle].append(output)
            self.tokens[output.handle] += output.token_ids
            if output.finish_reason is not None:
                self.ends[output.handle] = output
        return outputs

    def run(self, max_steps: int = 2000) -> int:
        """Steps until idle; returns how many."""
        for num_steps in range(max_steps):
            if not self.engine.has_work:
                self.step()  # what was made between steps
                assert self.engine.load().num_free_blocks == self.config.num_blocks
                self.engine.check_integrity()
                assert not self.engine._requests, "owners that have nothing left are remembered"
                return num_steps
            self.step()
        raise AssertionError("the engine does not come to an end")

    def reasons(self) -> dict[int, str | None]:
        return {handle: end.finish_reason for handle, end in self.ends.items()}

    def expected_tokens(self, handle: int) -> list[int]:
        """What the request would bring if it were alone."""
        new = self.added[handle]
        footprint = KVFootprint(self.config.block_size, self.config.windows)
        limit = footprint.longest(self.config.num_blocks, self.config.max_model_len)
        alone = generate_alone(new.prompt_token_ids, new.sampling, VOCAB_SIZE, limit, self.memory)
        return alone[len(new.emitted_token_ids) :]


def new_request(
    handle: int,
    prompt: list[int],
    max_tokens: int = 4,
    *,
    arrival_s: float = 0.0,
    owner: Hashable = "gateway",
    emitted: list[int] | None = None,
    priority: int = 0,
    cache_salt: str = "",
    deadline_s: float | None = None,
    **sampling: Any,
) -> NewRequest:
    return NewRequest(
        owner=owner,
        handle=handle,
        request_id=f"r{handle}",
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),
        emitted_token_ids=emitted or [],
        arrival_s=arrival_s,
        priority=priority,
        cache_salt=cache_salt,
        deadline_s=deadline_s,
    )


def prompt_of(length: int, start: int = 0) -> list[int]:
    return [(start + i * 7) % VOCAB_SIZE for i in range(length)]
