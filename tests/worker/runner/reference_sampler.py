"""The sampler's stages for one row in numpy and plain integers: what the fast one must equal."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from worker.engine.sampling_params import SamplingParams

Row = npt.NDArray[np.float32]
MASK32 = (1 << 32) - 1
MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def reference_token(raw: Row, params: SamplingParams, prompt: list[int], output: list[int]) -> int:
    raw = clean(raw)
    x = raw.copy()
    mask(x, params, output)
    for token_id, bias in params.logit_bias:
        x[token_id] += np.float32(bias)
    penalize(x, params, prompt, output)
    if np.all(x == -np.inf):
        return last_resort(raw, params, output)
    if params.is_greedy:
        return int(x.argmax())
    x = truncate(x / np.float32(params.temperature), params)
    noise = [gumbel(params.seed, len(output), token_id) for token_id in range(len(x))]
    return int((x.astype(np.float64) + np.array(noise)).argmax())


def last_resort(raw: Row, params: SamplingParams, output: list[int]) -> int:
    """The most likely of what may come at all; 0 where nothing may: the sequence fails."""
    marks = np.zeros_like(raw)
    mask(marks, replace(params, min_tokens=0), output)
    may = np.flatnonzero(marks == 0)
    return int(may[raw[may].argmax()]) if len(may) else 0


def clean(raw: Row) -> Row:
    return np.nan_to_num(raw.astype(np.float32), nan=-np.inf, posinf=1e30, neginf=-np.inf)


def mask(x: Row, params: SamplingParams, output: list[int]) -> None:
    if params.allowed_token_ids:
        others = sorted(set(range(len(x))) - set(params.allowed_token_ids))
        x[others] = -np.inf
    for word in params.bad_words:
        prefix = list(word[:-1])
        if output[len(output) - len(prefix) :] == prefix and len(output) >= len(prefix):
            x[word[-1]] = -np.inf
    if len(output) < params.min_tokens:
        x[list(params.stop_token_ids)] = -np.inf


def penalize(x: Row, params: SamplingParams, prompt: list[int], output: list[int]) -> None:
    repetition = np.float32(params.repetition_penalty)
    for token_id in set(prompt) | set(output):
        value = x[token_id]
        x[token_id] = value / repetition if value > 0 else value * repetition
    for token_id in set(output):
        count = np.float32(output.count(token_id))
        x[token_id] -= np.float32(params.frequency_penalty) * count
        x[token_id] -= np.float32(params.presence_penalty)


def truncate(x: Row, params: SamplingParams) -> Row:
    if params.min_p > 0:
        floor = np.float32(np.float64(x.max()) + math.log(params.min_p))
        x = np.where(x >= floor, x, np.float32(-np.inf))
    if 0 < params.top_k < len(x):
        x = np.where(x >= np.sort(x)[-params.top_k], x, np.float32(-np.inf))
    if params.top_p < 1:
        ordered = np.sort(x)[::-1]
        weights = np.exp((ordered - ordered[0]).astype(np.float64))
        before = np.cumsum(weights) - weights
        x = np.where(
            x >= ordered[before < params.top_p * weights.sum()].min(), x, np.float32(-np.inf)
        )
    return x


def gumbel(seed: int, position: int, token_id: int) -> float:
    uniform = (token_bits(noise_key(seed, position), token_id) + 0.5) / 2**31
    return -math.log(-math.log1p(-min(uniform, 1 - 2**-20)))


def noise_key(seed: int, position: int) -> int:
    return mix64(mix64((seed + GOLDEN) & MASK64) + (position + 1) * GOLDEN & MASK64)


def mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def token_bits(key: int, token_id: int) -> int:
    h = ((token_id ^ (key & MASK32)) * 0x2C1B3C6D) & MASK32
    h = ((h ^ (h >> 16)) + (key >> 32)) & MASK32
    h = (h * 0x7FEB352D) & MASK32
    h = ((h ^ (h >> 15)) * 0x846CA68B) & MASK32
    return (h ^ (h >> 16)) & 0x7FFFFFFF
