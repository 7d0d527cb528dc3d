"""Chooses tokens from rows of logits: the largest, or a draw after temperature and truncation.

Knows one request's parameters a row, and neither masks nor edits; rows are grouped by what they
need. `choose_unseen` is for steps whose tokens the host does not wait for. Called by the sampler.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from worker.attention.registry import wants_triton
from worker.attention.upload import upload
from worker.runner.logit_edits import SlotState
from worker.runner.logits import finite_logits
from worker.runner.noise import gumbel, noise_keys, noisy_argmax, noisy_argmax_above
from worker.runner.truncation import Candidates, exact_threshold, find_candidates, min_p_floor


def choose_unseen(logits: Tensor, states: list[SlotState]) -> Tensor:
    """One token a row, by rows that are all self-contained. logits: [R, V]; returns [R] int64.

    The host waits for nothing; on a device without Triton it does for rows with top-k or top-p,
    since somebody has to look whether their short list of candidates was enough.
    """
    drawn = [i for i, state in enumerate(states) if not state.params.is_greedy]
    if len(drawn) == len(states):
        return _drawn(logits, states)
    tokens = logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax(dim=1)
    if drawn:
        (index,) = upload([np.array(drawn, dtype=np.int64)], logits.device)
        some = _drawn(logits.index_select(0, index), [states[i] for i in drawn])
        tokens.index_copy_(0, index, some)
    return tokens


def _drawn(logits: Tensor, states: list[SlotState]) -> Tensor:
    x = finite_logits(logits)
    row_max = apply_temperature(x, states)
    tokens = draw(Rows(x, row_max, states))
    return tokens.masked_fill_(row_max == -torch.inf, 0)  # no token is likelier than another


def apply_temperature(x: Tensor, states: list[SlotState]) -> Tensor:
    """In place; returns the rows' maxima [R]."""
    if any(state.params.temperature != 1 for state in states):
        temperatures = np.array([state.params.temperature for state in states], dtype=np.float32)
        x /= upload([temperatures], x.device)[0][:, None]
    return x.amax(dim=1)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to draw from: logits after temperature [R, V], their maxima [R], and whose they are."""

    x: Tensor
    row_max: Tensor
    states: list[SlotState]

    def keys(self) -> Tensor:
        seeds = [state.params.seed for state in self.states]
        return noise_keys(seeds, [state.position for state in self.states], self.x.device)

    def take(self, rows: list[int]) -> "Rows":
        if len(rows) == len(self.states):
            return self
        (index,) = upload([np.array(rows, dtype=np.int64)], self.x.device)
        return Rows(self.x[index], self.row_max[index], [self.states[i] for i in rows])


def draw(rows: Rows) -> Tensor:
    """Truncates and draws. Returns [R] int64."""
    if has_kernels(rows.x.device):
        return draw_unseen(rows)
    return _draw_by(_draw_truncated, rows)


def draw_unseen(rows: Rows) -> Tensor:
    """The same by kernels that the host does not wait for."""
    return _draw_by(_draw_truncated_unseen, rows)


@lru_cache(maxsize=8)
def has_kernels(device: torch.device) -> bool:
    """Whether Triton programs run on the device."""
    return wants_triton("auto", device)


def _draw_by(draw_truncated: Callable[[Rows], Tensor], rows: Rows) -> Tensor:
    ordered = [i for i, s in enumerate(rows.states) if s.truncation.needs_order]
    if not ordered:
        return _draw_dense(rows)
    if len(ordered) == len(rows.states):
        return draw_truncated(rows)
    dense = sorted(set(range(len(rows.states))).difference(ordered))
    indices = [np.array(some, dtype=np.int64) for some in (ordered, dense)]
    at_ordered, at_dense = upload(indices, rows.x.device)
    tokens = torch.empty(len(rows.states), dtype=torch.int64, device=rows.x.device)
    tokens.index_copy_(0, at_ordered, draw_truncated(rows.take(ordered)))
    tokens.index_copy_(0, at_dense, _draw_dense(rows.take(dense)))
    return tokens


def _draw_truncated_unseen(rows: Rows) -> Tensor:
    """top-k and top-p: the rows whose list is not enough find that out themselves."""
    from worker.runner.open_rows import decide_open_rows  # loads a compiler

    params, keys = [state.truncation for state in rows.states], rows.keys()
    found = find_candidates(rows.x, rows.row_max, params)
    tokens = _best_candidates(found, keys)
    decide_open_rows(tokens, rows.x, rows.row_max, found, keys, params)
    return tokens


def _best_candidates(found: Candidates, keys: Tensor) -> Tensor:
    """[R] int64"""
    scores = found.logits.double() + gumbel(keys[:, None, :], found.token_ids.int())
    return found.token_ids.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)


def _draw_truncated(rows: Rows) -> Tensor:
    """top-k and top-p: as a rule noise for a short list of tokens is enough."""
    found = find_candidates(rows.x, rows.row_max, [state.truncation for state in rows.states])
    tokens = _best_candidates(found, rows.keys())
    open_rows = (~found.is_complete).nonzero().squeeze(1).tolist()
    if open_rows:
        rest = rows.take(open_rows)
        threshold = found.threshold[open_rows]
        unknown = (~found.is_known[open_rows]).nonzero().squeeze(1).tolist()
        if unknown:
            hard = rest.take(unknown)
            hard_params = [state.truncation for state in hard.states]
            threshold[unknown] = exact_threshold(hard.x, hard.row_max, hard_params)
        tokens[open_rows] = noisy_argmax_above(rest.x, rest.keys(), threshold)
    return tokens


def _draw_dense(rows: Rows) -> Tensor:
    """Any token may win; min-p only forbids the unlikely ones."""
    params = [state.truncation for state in rows.states]
    if any(row.min_p > 0 for row in params):
        return noisy_argmax_above(rows.x, rows.keys(), min_p_floor(rows.row_max, params))
    return noisy_argmax(rows.x, rows.keys())


def greedy(logits: Tensor) -> Tensor:
    """The first of the largest in each row; NaN counts as minus infinity. Returns [R] int64."""
    tokens = row_argmax(logits)
    is_nan = _is_nan_at(logits, tokens)
    if bool(is_nan.any()):
        tokens[is_nan] = row_argmax(finite_logits(logits[is_nan]))
    return tokens


def row_argmax(x: Tensor) -> Tensor:
    """As torch.argmax(dim=1): the first of equal ones, NaN before all. On CPUs numpy is quicker."""
    if x.device.type != "cpu":
        return x.argmax(dim=1)
    return torch.from_numpy(x.detach().float().numpy().argmax(axis=1))


def _is_nan_at(x: Tensor, columns: Tensor) -> Tensor:
    """Whether each row is NaN at its column, [R]. After a step's weights have gone through the
    caches every operation of torch costs a CPU some 20 us; numpy's are cheaper.
    """
    if x.device.type != "cpu" or x.dtype == torch.bfloat16:
        return x.gather(1, columns[:, None]).squeeze(1).isnan()
    rows = x.detach().numpy()
    return torch.from_numpy(np.isnan(rows[np.arange(len(rows)), columns.numpy()]))
