"""What grammars do to logits: tokens that may not come next become impossible.

Masks come as bits, a row a sequence (worker/runner/grammar.py). Pure functions, called by the
sampler.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.runner.grammar import Mask
from worker.runner.logit_edits import SlotState

IdArray = npt.NDArray[np.int64]

_ROWS_AT_ONCE = 8


def forbid_tokens(x: Tensor, states: list[SlotState]) -> None:
    """Makes impossible what the rows' grammars do not allow next. x: [R, V] float32, in place."""
    rows = [i for i, s in enumerate(states) if s.grammar is not None and s.grammar.is_ready]
    if not rows:
        return
    bias = _bias(_masks([states[row] for row in rows]), x.device)[:, : x.shape[1]]
    if len(rows) == len(states):
        x += bias
    else:
        x.index_add_(0, torch.tensor(rows, device=x.device), bias)


def greedy_in_grammar(logits: Tensor, states: list[SlotState]) -> tuple[Tensor, Tensor]:
    """The largest of what the rows' grammars allow, [R] int64, and [R] bool: it is nothing finite,
    so that row must be looked at again. logits: [R, V]."""
    if not all(s.grammar is not None and s.grammar.is_ready for s in states):
        return torch.zeros(len(states), dtype=torch.int64), torch.ones(
            len(states), dtype=torch.bool
        )
    masks = _masks(states)
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        x = logits + _bias(masks, logits.device)[:, : logits.shape[1]]
        largest, tokens = x.max(dim=1)
        return tokens, ~largest.isfinite()
    x_np = logits.numpy()
    found = x_np.argmax(axis=1)
    rows = np.arange(len(found))
    is_odd = ~np.isfinite(x_np[rows, found])
    # Mostly the model wants what the grammar allows; only the other rows are looked through again.
    again = np.flatnonzero(_not_allowed(masks, found) & ~is_odd)
    for start in range(0, len(again), _ROWS_AT_ONCE):
        piece = again[start : start + _ROWS_AT_ONCE]
        found[piece], scores = _greedy_piece(x_np[piece], masks[piece])
        is_odd[piece] = ~np.isfinite(scores)
    return torch.from_numpy(found), torch.from_numpy(is_odd)


def _not_allowed(masks: Mask, token_ids: IdArray) -> npt.NDArray[np.bool_]:
    """[R]: whether each row's token is one that its mask forbids."""
    bytes_at = masks[np.arange(len(token_ids)), token_ids >> 3]
    return (bytes_at >> (token_ids & 7).astype(np.uint8)) & 1 == 0


def _greedy_piece(
    x: npt.NDArray[np.float32], masks: Mask
) -> tuple[IdArray, npt.NDArray[np.float32]]:
    """Of few rows, so that all that is made for them stays in the cache."""
    bias = np.take(_BIASES, masks, axis=0, mode="clip")
    scores = bias.reshape(len(x), -1)[:, : x.shape[1]]
    scores += x
    tokens = scores.argmax(axis=1)
    return tokens, scores[np.arange(len(x)), tokens]


def _masks(states: list[SlotState]) -> Mask:
    """[R, V / 8], of rows that all have one."""
    return np.stack([s.grammar.mask for s in states if s.grammar is not None])


def allowed_tokens(mask: Mask, vocab_size: int) -> Tensor:
    """[V] bool."""
    bits = np.unpackbits(mask, count=vocab_size, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_))


def _bias(masks: Mask, device: torch.device) -> Tensor:
    """[R, >= V] float32: 0 where a bit is set, else minus infinity. masks: [R, V / 8].

    Eight tokens at a time from a table: choosing token by token, as masked_fill does, is twenty
    times slower on CPUs, where every other branch is mispredicted.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.take(_BIASES, masks, axis=0, mode="clip")).flatten(1)
    packed = torch.from_numpy(masks).to(device)
    return torch.from_numpy(_BIASES).to(device)[packed.int()].flatten(1)


def _bias_of_bytes() -> npt.NDArray[np.float32]:
    """[256, 8]: of each byte of a mask, lowest bit first."""
    every_byte = np.arange(256, dtype=np.uint8)[:, None]
    bits = np.unpackbits(every_byte, axis=1, bitorder="little")
    return np.where(bits > 0, np.float32(0), np.float32(-np.inf))


_BIASES = _bias_of_bytes()
