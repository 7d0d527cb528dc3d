"""A prefix that many requests share is computed once, also when they arrive together."""

import pytest

from tests.worker.engine.harness import new_request
from tests.worker.engine.simulated_machine import Simulation

NUM_OWN = 64
NUM_OUTPUT = 32
NUM_AT_ONCE = 8


def run_group(simulation: Simulation, num_common: int, num_requests: int, spacing_s: float) -> None:
    """Eight at once, one more for each that ends; the first ones come `spacing_s` apart."""
    common = [(7 * i + 3) % 50 for i in range(num_common)]
    live: set[int] = set()
    for handle in range(num_requests):
        due_s = simulation.clock() + spacing_s if handle < NUM_AT_ONCE else 0.0
        while len(live) == NUM_AT_ONCE or (live and simulation.clock() < due_s):
            live -= {o.handle for o in simulation.step() if o.finish_reason}
        own = [handle % 50, handle // 50, *((13 * handle + 3 * i) % 50 for i in range(NUM_OWN - 2))]
        simulation.arrivals[handle], simulation.times[handle] = simulation.clock(), []
        simulation.engine.add(
            new_request(handle, common + own, NUM_OUTPUT, arrival_s=simulation.clock())
        )
        live.add(handle)
    simulation.run()


@pytest.mark.parametrize("num_common", [1024, 3008])
@pytest.mark.parametrize("spacing_s", [0.0, 0.003, 0.1])
@pytest.mark.parametrize("target_itl_ms", [0, None])
def test_common_prefix_is_computed_once(
    num_common: int, spacing_s: float, target_itl_ms: float | None
) -> None:
    simulation = Simulation(target_itl_ms)
    run_group(simulation, num_common, 32, spacing_s)
    own = 32 * (NUM_OWN + NUM_OUTPUT - 1)
    assert simulation.machine.executor.computed_tokens == num_common + own
    assert simulation.engine.counters().prefix_cache_hits == 31 * num_common


def test_common_prefix_is_computed_once_beside_a_running_stream() -> None:
    simulation = Simulation(target_itl_ms=50)
    simulation.add(999, 40, 400, start=17)
    simulation.run(40)
    before = simulation.machine.executor.computed_tokens
    run_group(simulation, 1024, 8, 0.0)
    own = 8 * (NUM_OWN + NUM_OUTPUT - 1)
    stream = len(simulation.times[999]) - 40
    assert simulation.machine.executor.computed_tokens - before == 1024 + own + stream
