"""Sampling noise as a pure function of (seed, position, token id): no generator, no state.

The same on CPU and GPU, in any batch and in any row order, so a token depends on nothing but its
own request. Choosing the largest `x + Gumbel` samples from softmax(x) (the Gumbel-max trick, Gumbel
1954) and needs noise only for tokens that may still win. Called by the sampler.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worker.attention.upload import upload
from worker.runner.largest import largest

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_CHUNK_ELEMENTS = 1 << 16  # of the dense pass: its scratch stays in the L2 cache
_CUDA_CHUNK_ELEMENTS = 1 << 24  # there each of its dozen operators is a launch
# Dense scores are first computed in float32, the best of them again in float64: which kernel took
# a logarithm then changes no token. The float32 error is below 0.01; so near to the winner there is
# another token in one draw of a hundred, and never fifteen of them.
_NUM_FINALISTS = 16
_FEW = 1 / 16  # share of the tokens up to which float64 noise for each is the quicker way
_LARGEST_UNIFORM = 1 - 2.0**-20  # keeps the float32 pass accurate; moves a millionth of the noise


def mix64(x: int) -> int:
    """SplitMix64's output function (Steele, Lea & Flood 2014, §3)."""
    x &= _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def noise_keys(seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> Tensor:
    """A 64-bit key a row: output number `position` of the SplitMix64 stream that `seed` starts.

    Returns [R, 2] int32.
    """
    keys = [
        mix64(mix64(seed + _GOLDEN) + (position + 1) * _GOLDEN)
        for seed, position in zip(seeds, positions, strict=True)
    ]
    words = np.array(keys, dtype=np.uint64).view(np.int32).reshape(-1, 2)
    return upload([words], device)[0]


def token_bits(keys: Tensor, token_ids: Tensor) -> Tensor:
    """31 random bits a token. keys: [..., 2] int32; token_ids: int32, broadcast against [...].

    Multiply and xor-shift rounds with both halves of the key mixed in (the round shape and the last
    two multipliers are those of lowbias32, Wellons 2018). int32 throughout: it vectorises where
    int64 does not, and wraps alike on every device.
    """
    h = token_ids ^ keys[..., 0]
    h.mul_(0x2C1B3C6D)
    _xor_shift(h, 16)
    h.add_(keys[..., 1])
    h.mul_(0x7FEB352D)
    _xor_shift(h, 15)
    h.mul_(0x846CA68B - (1 << 32))
    _xor_shift(h, 16)
    return h.bitwise_and_(0x7FFFFFFF)


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise in float64. Shapes as for `token_bits`."""
    bits = token_bits(keys, token_ids)
    uniform = bits.double().add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST_UNIFORM)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def noisy_argmax(x: Tensor, keys: Tensor) -> Tensor:
    """One token a row from softmax(x). x: [R, V] float32; keys: [R, 2]; returns [R] int64."""
    _, ids = largest(_rough_scores(x, keys), min(_NUM_FINALISTS, x.shape[1]))
    exact = x.gather(1, ids).double() + gumbel(keys[:, None, :], ids.int())
    return ids.gather(1, exact.argmax(dim=1, keepdim=True)).squeeze(1)


def noisy_argmax_above(x: Tensor, keys: Tensor, floor: Tensor) -> Tensor:
    """The same among the tokens that reach their row's floor [R], quick where those are few. V
    stands for a row that none reaches.
    """
    stays = x >= floor[:, None]
    if x.device.type != "cpu":  # counting them would have the host wait
        return noisy_argmax(x.masked_fill(~stays, -torch.inf), keys)
    at = stays.nonzero(as_tuple=True)
    if len(at[0]) <= x.numel() * _FEW:
        return _decide(x, keys, at)
    return noisy_argmax(x.masked_fill(~stays, -torch.inf), keys)


def _decide(x: Tensor, keys: Tensor, at: tuple[Tensor, ...]) -> Tensor:
    """The winner of each row among the tokens `at`, in float64; the first of equal ones."""
    rows, ids = at
    exact = x[rows, ids].double() + gumbel(keys[rows], ids.int())
    best = exact.new_full((x.shape[0],), -torch.inf).scatter_reduce_(0, rows, exact, "amax")
    won = exact == best[rows]
    winners = ids.new_full((x.shape[0],), x.shape[1])
    return winners.scatter_reduce_(0, rows[won], ids[won], "amin")


def _rough_scores(x: Tensor, keys: Tensor) -> Tensor:
    """x + Gumbel in float32, by columns. [R, V]."""
    num_rows, vocab_size = x.shape
    size = _CHUNK_ELEMENTS if x.device.type == "cpu" else _CUDA_CHUNK_ELEMENTS
    width = max(1024, size // max(num_rows, 1))
    scores = torch.empty_like(x)
    keys = keys[:, None, :]
    for start in range(0, vocab_size, width):
        end = min(start + width, vocab_size)
        token_ids = torch.arange(start, end, dtype=torch.int32, device=x.device)[None, :]
        uniform = token_bits(keys, token_ids).float().add_(0.5).mul_(2.0**-31)
        log_exponential = uniform.clamp_(max=_LARGEST_UNIFORM).neg_().log1p_().neg_().log_()
        torch.sub(x[:, start:end], log_exponential, out=scores[:, start:end])
    return scores


def _xor_shift(h: Tensor, bits: int) -> None:
    """h ^= h >>> bits, in place. torch shifts arithmetically: the sign's copies are masked away."""
    h.bitwise_xor_((h >> bits).bitwise_and_((1 << (32 - bits)) - 1))
