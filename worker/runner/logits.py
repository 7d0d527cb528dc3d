"""Log-probabilities from raw logits: of sampled tokens and of prompts.

Pure functions of logits, called by the sampler and by the model runner. A logarithm of the whole
softmax is never stored: one normalizer a row is enough, and long prompts are worked off in pieces.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.step import TokenLogprobs
from worker.runner.largest import largest

LOGPROB_FLOOR = -9999.0  # stands for minus infinity, which JSON cannot say
_PIECE_ELEMENTS = 1 << 24  # float32 scratch of at most 64 MiB
_SUM_WIDTH = 8192
_CUDA_SUM_WIDTH = 1 << 18
# Looked at beyond the alternatives asked for: holds ties at their end and tells most tokens' rank.
_LIST_ROOM = 12


def token_logprobs(
    logits: Tensor, token_ids: Tensor, num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """One entry a row. logits: [N, V] any float; token_ids: [N]; num_top: alternatives per row."""
    rows_at_once = max(1, _PIECE_ELEMENTS // max(logits.shape[1], 1))
    found: list[TokenLogprobs] = []
    for start in range(0, logits.shape[0], rows_at_once):
        end = start + rows_at_once
        found += _piece(logits[start:end], token_ids[start:end], num_top[start:end])
    return found


def prompt_logprobs(logits: Tensor, target_ids: Tensor, num_top: int) -> list[TokenLogprobs]:
    """Of each prompt token that follows a computed one. logits: [N, V]; target_ids: [N]."""
    return token_logprobs(logits, target_ids, [num_top] * logits.shape[0])


def finite_logits(logits: Tensor) -> Tensor:
    """A float32 copy in which NaN counts as impossible and +inf as a large logit. Any shape."""
    x = logits.to(torch.float32, copy=True)
    return x.nan_to_num_(nan=-torch.inf, posinf=1e30, neginf=-torch.inf)


def exp_mass(x: Tensor, row_max: Tensor, floor: Tensor | None = None) -> Tensor:
    """Sum of exp(x - row_max) over each row, or over its logits from `floor` on: [R] float64.

    Taken in pieces of columns: the scratch stays in the cache, and a row's sum does not depend on
    the batch.
    """
    total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    width = _SUM_WIDTH if x.device.type == "cpu" else _CUDA_SUM_WIDTH
    for start in range(0, x.shape[1], width):
        part = x[:, start : start + width]
        weights = (part - row_max[:, None]).exp_()
        if floor is not None:
            weights.masked_fill_(part < floor[:, None], 0)
        total += weights.sum(dim=1).double()
    return total


def _piece(logits: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    x = finite_logits(logits)
    token_ids = token_ids.to(device=x.device, dtype=torch.int64)
    chosen = x.gather(1, token_ids[:, None])
    top_values, top_ids = _most_likely(x, max(num_top, default=0))
    row_max = top_values[:, 0]
    normalizer = (row_max + exp_mass(x, row_max).log()).float()[:, None]
    logprobs = _floored(chosen - normalizer).squeeze(1).tolist()
    top_logprobs = _floored(top_values - normalizer).tolist()
    ranks = _ranks(x, chosen, top_values).tolist()
    columns = zip(token_ids.tolist(), logprobs, ranks, strict=True)
    tops = zip(top_ids.tolist(), top_logprobs, num_top, strict=True)
    return [
        TokenLogprobs(token_id, logprob, rank, ids[:wanted], values[:wanted])
        for (token_id, logprob, rank), (ids, values, wanted) in zip(columns, tops, strict=True)
    ]


def _ranks(x: Tensor, chosen: Tensor, top_values: Tensor) -> Tensor:
    """1 + the number of more likely tokens; beyond the list of the largest the row is counted."""
    ranks = (top_values > chosen).sum(dim=1) + 1
    is_beyond = chosen[:, 0] < top_values[:, -1]
    if bool(is_beyond.any()):
        ranks[is_beyond] = (x[is_beyond] > chosen[is_beyond]).sum(dim=1) + 1
    return ranks


def _most_likely(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At least the `count` largest of each row, equal ones by ascending id: values and ids."""
    values, ids = largest(x, min(count + _LIST_ROOM, x.shape[1]))
    by_id = ids.argsort(dim=1)
    values, ids = values.gather(1, by_id), ids.gather(1, by_id)
    order = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order), ids.gather(1, order)


def _floored(logprobs: Tensor) -> Tensor:
    return logprobs.nan_to_num_(nan=LOGPROB_FLOOR, neginf=LOGPROB_FLOOR).clamp_(min=LOGPROB_FLOOR)
