"""What a streamed token may cost: counted in calls, which no busy machine changes."""

import asyncio
import gc
import sys
from time import perf_counter
from typing import Any

from gateway.chunks import ChunkHead, TextChunks
from gateway.drain import Drain
from gateway.generation import Generation, GenerationPlan
from gateway.metrics import GatewayMetrics
from gateway.routed_stream import RoutedStream
from gateway.text.choice import ChoiceEvent, TextSettings
from gateway.tokens import SamplingSettings, TokenRequest
from protos.garbage import spare_garbage_collection
from tests.gateway.fake_router import MODEL, ids_of, tokenizer

NUM_TOKENS = 200
# From a token's arrival on its stream to its frame: 20 when this was written.
MOST_CALLS = 30


class OneStream:
    """A router that knows one stream."""

    def __init__(self) -> None:
        self.stream: RoutedStream

    async def start(self, request: TokenRequest) -> RoutedStream:
        self.stream = RoutedStream(request, MODEL, lambda *_: None, lambda _: None)
        return self.stream


async def test_a_token_takes_few_calls_and_wakes_no_task():
    text = tokenizer()
    request = TokenRequest("r", "tiny", ids_of("hello"), SamplingSettings(max_tokens=10_000))
    plan = GenerationPlan([request], 1, text, TextSettings())
    router = OneStream()
    metrics = GatewayMetrics().of_model("tiny")
    chunks = TextChunks(ChunkHead("cmpl-1", 0, "tiny", "fp", text))
    frames: list[bytes] = []

    def consume(events: list[ChoiceEvent]) -> bool:
        frames.append(chunks.write(events[0], None))
        return True

    async with Generation(plan, router, metrics.start(perf_counter(), 1), Drain()) as generation:
        reading = asyncio.create_task(generation.pump(consume))
        await asyncio.sleep(0)
        token_id = ids_of(" world")[0]
        give(router.stream, token_id, 10)
        num_calls = count_calls(lambda: give(router.stream, token_id, NUM_TOKENS))
        # All frames are there, though the loop has not run since.
        assert len(frames) == 10 + NUM_TOKENS
        assert num_calls / NUM_TOKENS <= MOST_CALLS
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def give(stream: RoutedStream, token_id: int, num_tokens: int) -> None:
    for _ in range(num_tokens):
        stream.on_token(token_id)
        stream.on_message_end()


def count_calls(work: Any) -> int:
    """Calls of Python functions."""
    num_calls = 0

    def profile(frame: object, event: str, arg: object) -> None:
        nonlocal num_calls
        num_calls += event == "call"

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return num_calls


def test_what_the_imports_left_is_not_walked_again():
    thresholds = gc.get_threshold()
    try:
        spare_garbage_collection()
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] > thresholds[0]
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
