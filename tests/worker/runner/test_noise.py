"""The noise is exactly its definition, and random: bits, neighbours, and what is drawn with it."""

import numpy as np
import pytest
import torch

from tests.worker.runner import reference_sampler as reference
from worker.runner.noise import gumbel, noise_keys, noisy_argmax, noisy_argmax_above, token_bits

CPU = torch.device("cpu")
VOCAB = 4096


def bits_of(seeds: list[int], positions: list[int], vocab_size: int = VOCAB) -> np.ndarray:
    keys = noise_keys(seeds, positions, CPU)[:, None, :]
    return token_bits(keys, torch.arange(vocab_size, dtype=torch.int32)[None, :]).numpy()


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """In standard deviations from the mean; about normal for many degrees of freedom."""
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_noise_is_its_definition(seed: int) -> None:
    keys = noise_keys([seed, seed], [0, 123_456], CPU)[:, None, :]
    token_ids = torch.tensor([[0, 1, 151_935, 2**31 - 1]], dtype=torch.int32)
    expected = [
        [reference.gumbel(seed, position, int(t)) for t in token_ids[0]]
        for position in (0, 123_456)
    ]
    torch.testing.assert_close(gumbel(keys, token_ids), torch.tensor(expected, dtype=torch.float64))


def test_keys_of_neighbours_and_seeds_differ() -> None:
    keys = noise_keys([s for s in range(100) for _ in range(100)], list(range(100)) * 100, CPU)
    assert len(torch.unique(keys, dim=0)) == 10_000


@pytest.mark.parametrize("shift", [0, 8, 16, 23])
def test_bits_are_uniform_over_tokens_positions_and_seeds(shift: int) -> None:
    bits = bits_of([s for s in range(16) for _ in range(16)], list(range(16)) * 16)
    counts = np.bincount(((bits >> shift) & 0xFF).ravel(), minlength=256)
    assert abs(chi_square(counts, np.full(256, bits.size / 256))) < 4


@pytest.mark.parametrize("axis", ["token", "position", "seed"])
def test_neighbours_are_independent(axis: str) -> None:
    """Joint distribution of the top 4 bits of neighbours, and their linear correlation."""
    if axis == "seed":
        bits = bits_of(list(range(256)), [7] * 256)
    else:
        bits = bits_of([5] * 256, list(range(256)))
    first, second = (bits[:, :-1], bits[:, 1:]) if axis == "token" else (bits[:-1], bits[1:])
    joint = np.bincount(((first >> 27) * 16 + (second >> 27)).ravel(), minlength=256)
    assert abs(chi_square(joint, np.full(256, first.size / 256))) < 4
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(first.size)


def test_one_changed_key_bit_changes_half_the_bits() -> None:
    keys = noise_keys([1], [1], CPU)
    token_ids = torch.arange(VOCAB, dtype=torch.int32)[None, :]
    before = token_bits(keys[:, None, :], token_ids).numpy()
    for word in (0, 1):
        for bit in range(31):
            changed = keys.clone()
            changed[0, word] ^= 1 << bit
            flipped = before ^ token_bits(changed[:, None, :], token_ids).numpy()
            share = np.unpackbits(flipped.view(np.uint8)).sum() / (31 * VOCAB)
            assert 0.4 < share < 0.6, (word, bit)


@pytest.mark.parametrize("vocab_size", [9, 3000])
def test_draws_follow_the_distribution(vocab_size: int) -> None:
    num_draws = 30_000 if vocab_size < 100 else 6_000
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(vocab_size, generator=generator)
    keys = noise_keys([11] * num_draws, list(range(num_draws)), CPU)
    drawn = torch.cat([noisy_argmax(x.expand(len(k), -1), k) for k in keys.split(1000)])
    groups = torch.arange(vocab_size) % 9
    expected = torch.zeros(9, dtype=torch.float64).index_add(0, groups, x.double().softmax(0))
    counts = torch.bincount(groups[drawn], minlength=9).numpy()
    assert chi_square(counts, expected.numpy() * num_draws) < 5


def test_any_way_of_deciding_gives_the_same_token() -> None:
    x = torch.randn(40, 5000, generator=torch.Generator().manual_seed(1)) * 2
    keys = noise_keys(list(range(40)), [3] * 40, CPU)
    token_ids = torch.arange(5000, dtype=torch.int32)[None, :]
    exact = (x.double() + gumbel(keys[:, None, :], token_ids)).argmax(1)
    assert torch.equal(noisy_argmax(x, keys), exact)
    for floor in (-100.0, 0.0, 5.0):  # everything, many, few stay
        kept = x.masked_fill(x < floor, -torch.inf).double()
        exact = (kept + gumbel(keys[:, None, :], token_ids)).argmax(1)
        assert torch.equal(noisy_argmax_above(x, keys, torch.full((40,), floor)), exact)


def test_near_ties_are_decided_exactly() -> None:
    """Two tokens whose scores differ by less than float32 can tell."""
    keys = noise_keys([1] * 500, list(range(500)), CPU)
    noise = gumbel(keys[:, None, :], torch.tensor([[0, 1]], dtype=torch.int32))
    x = torch.stack([torch.zeros(500), (noise[:, 0] - noise[:, 1]).float()], dim=1)
    assert torch.equal(noisy_argmax(x, keys), (x.double() + noise).argmax(1))
