"""min-p, top-k and top-p as one threshold per row: a token stays if its logit reaches it.

A threshold on the value treats equal logits alike (common in bfloat16), so the outcome does not
depend on how a sort breaks ties or on the batch. Called by the sampler with logits already divided
by the temperature.
Shapes: R = rows, V = vocabulary, K = the largest logits looked at.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.attention.upload import upload
from worker.runner.largest import largest
from worker.runner.logits import exp_mass

_NUCLEUS_GUESS = 64  # tokens that as a rule hold the top-p mass
_LONG_LIST = 2048
_TIE_ROOM = 8


@dataclass(frozen=True, slots=True)
class TruncationParams:
    """One row's settings. top_k 0, top_p 1 and min_p 0 keep everything."""

    top_k: int
    top_p: float
    min_p: float

    @property
    def needs_order(self) -> bool:
        """top-k and top-p look at the largest logits in order; min-p only needs the maximum."""
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True, slots=True)
class Candidates:
    """The largest K logits of each row: those that stay, and whether others stay too."""

    logits: Tensor  # [R, K], -inf where dropped
    token_ids: Tensor  # [R, K]
    threshold: Tensor  # [R]
    is_known: Tensor  # [R] bool: the threshold is right, not only a lower bound's guess
    is_complete: Tensor  # [R] bool: every token that stays is listed


def min_p_floor(row_max: Tensor, rows: list[TruncationParams]) -> Tensor:
    """p >= min_p * p_max, as a bound on the logit. row_max: [R]; returns [R] float32."""
    logs = [math.log(row.min_p) if row.min_p > 0 else -math.inf for row in rows]
    (floors,) = upload([np.array(logs, dtype=np.float64)], row_max.device)
    return (row_max.double() + floors).float()


def find_candidates(x: Tensor, row_max: Tensor, rows: list[TruncationParams]) -> Candidates:
    """A short list that as a rule holds all that stays. x: [R, V]; every row needs order."""
    return _look_at(min(_list_length(rows), x.shape[1]), x, row_max, rows)


def exact_threshold(x: Tensor, row_max: Tensor, rows: list[TruncationParams]) -> Tensor:
    """For rows that a short list cannot decide: a long one, then a full sort. Returns [R]."""
    found = _look_at(min(_LONG_LIST, x.shape[1]), x, row_max, rows)
    unknown = (~found.is_known).nonzero().squeeze(1)
    if len(unknown) == 0:
        return found.threshold
    rest, rest_rows = x[unknown], [rows[i] for i in unknown.tolist()]
    ordered = rest.sort(dim=1, descending=True).values
    found.threshold[unknown], _ = _threshold(ordered, rest, row_max[unknown], rest_rows)
    return found.threshold


def _list_length(rows: list[TruncationParams]) -> int:
    wanted = max(row.top_k + _TIE_ROOM if row.top_k > 0 else _NUCLEUS_GUESS for row in rows)
    return min(wanted, _LONG_LIST)


def _look_at(length: int, x: Tensor, row_max: Tensor, rows: list[TruncationParams]) -> Candidates:
    logits, token_ids = largest(x, length)
    threshold, is_known = _threshold(logits, x, row_max, rows)
    # A threshold at the list's end: equal logits may lie beyond it.
    is_complete = is_known & (threshold > logits[:, -1])
    if length == x.shape[1]:
        is_complete = is_known
    kept = logits.masked_fill(logits < threshold[:, None], -torch.inf)
    return Candidates(kept, token_ids, threshold, is_known, is_complete)


def _threshold(
    ordered: Tensor, x: Tensor, row_max: Tensor, rows: list[TruncationParams]
) -> tuple[Tensor, Tensor]:
    """ordered: [R, K] the largest logits, descending. Returns the thresholds [R] and whether K was
    enough to know them [R].
    """
    length = ordered.shape[1]
    asked = [
        np.array([row.top_k or x.shape[1] for row in rows], dtype=np.int64),
        np.array([row.top_p for row in rows], dtype=np.float64),
    ]
    top_k, top_p = upload(asked, x.device)
    kth = ordered.gather(1, top_k.clamp(max=length)[:, None] - 1).squeeze(1)
    kth.masked_fill_(top_k > length, -torch.inf)
    floor = torch.maximum(kth, min_p_floor(row_max, rows))
    stays = ordered >= floor[:, None]
    weights = (ordered - row_max[:, None]).double().exp_().mul_(stays)
    mass = weights.sum(dim=1)
    _replace_partial_mass(mass, ordered, x, row_max, floor, top_p < 1)
    in_nucleus = (weights.cumsum(dim=1) - weights) < (top_p * mass)[:, None]
    stays &= in_nucleus | (top_p >= 1)[:, None]
    threshold = ordered.masked_fill(~stays, torch.inf).amin(dim=1)
    is_cut_by_k = (top_k <= length) & (top_p >= 1)
    is_known = is_cut_by_k | ~stays[:, -1] | (length == x.shape[1])
    return threshold, is_known


def _replace_partial_mass(
    mass: Tensor, ordered: Tensor, x: Tensor, row_max: Tensor, floor: Tensor, has_top_p: Tensor
) -> None:
    """The nucleus is a share of all tokens above the floor; where the list may not hold them all,
    the whole row is summed.
    """
    if ordered.shape[1] == x.shape[1]:
        return
    is_partial = has_top_p & (floor <= ordered[:, -1])
    if x.device.type != "cpu":  # to count them would have the host wait
        mass.copy_(torch.where(is_partial, exp_mass(x, row_max, floor), mass))
        return
    index = is_partial.nonzero().squeeze(1)
    if len(index) > 0:
        part = x if len(index) == len(x) else x[index]
        mass[index] = exp_mass(part, row_max[index], floor[index])
