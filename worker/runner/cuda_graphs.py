"""Decode steps as CUDA graphs: hundreds of kernels of a step launched as one.

Graphs exist by padded batch size and are captured when a size first comes up. What changes from
step to step lies in memory of fixed addresses; rows beyond the batch write to a block that nobody
owns and attend to nothing. Knows no plans and no sampling; the ModelRunner calls it with a step's
inputs. Attention comes as a StaticAttention, recording and replaying are behind a Capturer, so that
all but the device's part runs on any machine.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.attention.base import (
    AttentionBackend,
    AttentionKind,
    AttentionPlan,
    BatchLayout,
    ForwardContext,
    LayerKVCache,
)
from worker.models.decoder import Decoder
from worker.parallel.group import TPGroup
from worker.runner.attention_uses import AttentionUse, PlanKey
from worker.runner.input_batch import StepInputs

logger = logging.getLogger(__name__)

_SMALL_SIZES = (1, 2, 4)
_SIZE_STEP = 8
_MAX_ROWS = 512  # beyond it a step takes long enough to launch its kernels one by one


class StaticAttention(Protocol):
    """Attention of steps with one token a sequence, over memory of fixed addresses."""

    def fill(self, layouts: Sequence[BatchLayout], num_rows: int) -> None:
        """Makes the plans for `num_rows` those of this step, of at most so many sequences; further
        rows get zeros. Nothing waits for it.
        """
        ...

    def plans(self, num_rows: int) -> Mapping[PlanKey, AttentionPlan]:
        """For batches padded to `num_rows`; they read what `fill` wrote last."""
        ...


# Of uses by key, the most rows, the most table entries of a step, and the device.
StaticMaker = Callable[[Mapping[PlanKey, AttentionUse], int, int, torch.device], StaticAttention]


class Capturer(Protocol):
    """Records what a function launches."""

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Returns what launches it all again, and where the result then is.

        Raises: RuntimeError when the function does what cannot be recorded.
        """
        ...

    def used_bytes(self) -> int:
        """Memory that the records hold by now."""
        ...


class CudaCapturer:
    """All graphs share one pool of memory: one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._used_bytes = 0

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        torch.cuda.synchronize(self._device)
        free = torch.cuda.mem_get_info(self._device)[0]
        graph = torch.cuda.CUDAGraph()
        # Thread-local: NCCL's watchdog asks for events in a thread of its own.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = run()
        self._used_bytes += max(0, free - torch.cuda.mem_get_info(self._device)[0])
        return graph.replay, out

    def used_bytes(self) -> int:
        return self._used_bytes


@dataclass(frozen=True, slots=True)
class GraphParts:
    """What decode graphs are made with, on a device and for a backend."""

    attention: StaticMaker
    capturer: Capturer


def graph_parts(backend: AttentionBackend, device: torch.device) -> GraphParts | None:
    """None where nothing can be captured."""
    maker = static_maker(backend)
    if maker is None or device.type != "cuda":
        return None
    return GraphParts(maker, CudaCapturer(device))


class DecodeGraphs:
    """Life: construct, `bind` to the cache, then `logits` for each step that it `takes`.

    Owned by the thread that runs the model. Collective: every rank captures and replays the same
    sizes in the same order. Logits are valid until the next call.
    """

    def __init__(
        self,
        model: Decoder,
        parts: GraphParts,
        uses: Mapping[PlanKey, AttentionUse],
        tp: TPGroup,
        num_groups: int,
        max_num_seqs: int,
        max_table_entries: int,
        device: torch.device,
    ) -> None:
        """`uses`: how the model calls attention. `max_table_entries`: in the block
        tables of a step, of all sequences and groups; a step with more is not taken.
        """
        self._model, self._capturer, self._tp = model, parts.capturer, tp
        self.sizes = padded_sizes(max_num_seqs)
        self._max_table_entries = max_table_entries
        max_rows = self.sizes[-1]
        self._attention = parts.attention(uses, max_rows, max_table_entries, device)
        self._token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._slots = torch.zeros((num_groups, max_rows), dtype=torch.int64, device=device)
        self._kv_caches: list[LayerKVCache] = []
        self._null_slot = 0
        self._graphs: dict[int, tuple[Callable[[], None], Tensor]] = {}
        self._budget_bytes: int | None = None
        self._is_capturing = True

    def bind(
        self, kv_caches: list[LayerKVCache], null_slot: int, budget_bytes: int | None = None
    ) -> None:
        """`null_slot`: a place in the cache for rows that mean nothing. `budget_bytes`: what graphs
        may hold, None: whatever they take; when less is left than one more may need, no more are
        captured, on any rank.
        """
        self._kv_caches, self._null_slot, self._budget_bytes = kv_caches, null_slot, budget_bytes

    def takes(self, inputs: StepInputs) -> bool:
        """Whether each sequence has one token, which is sampled, and there is room for all."""
        layout = inputs.layouts[0]
        num_rows = len(layout.query_lens)
        if not len(inputs.token_ids) == len(inputs.sampled_slots) == num_rows <= self.sizes[-1]:
            return False
        num_blocks = int((-(-layout.context_lens // layout.block_size)).sum())
        return num_blocks * len(inputs.layouts) <= self._max_table_entries

    def logits(self, inputs: StepInputs) -> Tensor:
        """[R, vocab_size] fp32, of R sequences. Collective."""
        num_rows = len(inputs.token_ids)
        size = self.sizes[bisect_left(self.sizes, num_rows)]
        self._fill(inputs, num_rows, size)
        graph = self._graphs.get(size)
        if graph is not None:
            replay, out = graph
            replay()
        else:
            # The first step of a size runs as it is: what loads at first use is not recorded.
            out = self._run(size)
            if self._is_capturing:
                self._capture(size)
        return out[:num_rows]

    def capture_all(self, layout: BatchLayout) -> None:
        """Every size that is missing, rather than as it comes up; `layout`: of any lone token.
        Collective.
        """
        layouts = [layout] * len(self._slots)
        for size in reversed(self.sizes):  # the small ones then find room in the large one's memory
            if size in self._graphs or not self._is_capturing:
                continue
            self._slots[:, :size].fill_(self._null_slot)
            self._attention.fill(layouts, size)
            self._run(size)
            self._capture(size)

    def _fill(self, inputs: StepInputs, num_rows: int, size: int) -> None:
        self._token_ids[:num_rows].copy_(inputs.token_ids)
        self._positions[:num_rows].copy_(inputs.positions)
        for slots, mapping in zip(self._slots, inputs.slot_mappings, strict=True):
            slots[:num_rows].copy_(mapping)
        if num_rows < size:  # their ids and positions are some earlier step's
            self._slots[:, num_rows:size].fill_(self._null_slot)
        self._attention.fill(inputs.layouts, size)

    def _run(self, size: int) -> Tensor:
        ctx = ForwardContext(
            positions=self._positions[:size],
            slot_mappings=[slots[:size] for slots in self._slots],
            layouts=(),
            kv_caches=self._kv_caches,
            backend=_no_backend,
            plans=dict(self._attention.plans(size)),
        )
        return self._model.logits(self._model(self._token_ids[:size], ctx)).float()

    def _capture(self, size: int) -> None:
        """All ranks go on capturing, or none: what was captured, and what was not, computes the
        same collectives.
        """
        used = self._capturer.used_bytes()
        is_captured = self._record(size)
        taken = self._capturer.used_bytes() - used
        budget = self._budget_bytes
        has_room = budget is None or used + 2 * taken <= budget
        self._is_capturing = self._tp.min_int(int(is_captured and has_room)) == 1

    def _record(self, size: int) -> bool:
        try:
            self._graphs[size] = self._capturer.capture(lambda: self._run(size))
        except RuntimeError:
            logger.exception("a decode step cannot be captured; decodes run kernel by kernel")
            return False
        used_mib = self._capturer.used_bytes() / 2**20
        logger.info(
            "rank=%d captured decodes of %d; graphs hold %.1f MiB", self._tp.rank, size, used_mib
        )
        return True


def static_maker(backend: AttentionBackend) -> StaticMaker | None:
    """What makes static attention that computes as the backend does; None: nothing does."""
    if not getattr(backend, "is_capturable", False):
        return None
    from worker.attention.triton_paged import heads_of
    from worker.attention.triton_static import StaticDecode

    def make(
        uses: Mapping[PlanKey, AttentionUse], max_rows: int, max_blocks: int, device: torch.device
    ) -> StaticAttention:
        heads = {key: heads_of(use.q, use.cache, use.kind) for key, use in uses.items()}
        return StaticDecode(heads, max_rows, max_blocks, device)

    return make


def padded_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then multiples of 8: padding costs little there, and graphs stay few."""
    most = min(max_num_seqs, _MAX_ROWS)
    small = [size for size in _SMALL_SIZES if size < most]
    last = -(-most // _SIZE_STEP) * _SIZE_STEP if most > _SMALL_SIZES[-1] else 0
    sizes = [*small, *range(_SIZE_STEP, last + 1, _SIZE_STEP)]
    return sizes if sizes and sizes[-1] >= most else [*sizes, most]


def _no_backend(layout: BatchLayout, kind: AttentionKind) -> AttentionPlan:
    raise AssertionError(f"a kind of attention that was not there before: {kind}")
