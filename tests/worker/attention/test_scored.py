"""Soft-caps and sinks, with scales and slopes: the gathered backend equals the reference."""

import itertools

import pytest
import torch

from tests.worker.attention.test_backends import HEADS, MIXTURES, make_step
from worker.attention import scored
from worker.attention.base import AttentionKind
from worker.attention.gathered import gathered_attention
from worker.attention.reference import ReferencePlan

KINDS = {
    "soft-cap": (AttentionKind(None, soft_cap=0.7), False),
    "soft-cap and window": (AttentionKind(7, soft_cap=0.7, scale=0.4), False),
    "sinks": (AttentionKind(None), True),
    "sinks and window": (AttentionKind(7), True),
    "all": (AttentionKind(40, scale=0.3, soft_cap=2.0), True),
}


def slopes(num_heads: int) -> tuple[float, ...]:
    return tuple(0.5**i for i in range(num_heads))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("name", KINDS)
def test_gathered_equals_reference(mixture: str, name: str) -> None:
    kind, has_sinks = KINDS[name]
    for heads, has_alibi in itertools.product(HEADS, (False, True)):
        layout, q, k, v, cache = make_step(MIXTURES[mixture], heads, block_size=4)
        its_slopes = slopes(heads[0]) if has_alibi else ()
        its_kind = AttentionKind(kind.window, kind.scale, kind.soft_cap, its_slopes)
        sinks = torch.linspace(-1, 2, heads[0]) if has_sinks else None
        found = gathered_attention(layout, its_kind).run(q, k, v, cache, sinks)
        expected = ReferencePlan(layout, its_kind).run(q, k, v, cache, sinks)
        message = f"heads={heads} alibi={has_alibi}"
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=message)


@pytest.mark.parametrize("mixture", ["a whole prompt", "a later chunk", "decodes around prompts"])
def test_scores_of_a_long_chunk_are_made_in_parts(
    mixture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, q, k, v, cache = make_step(MIXTURES[mixture], HEADS[1], block_size=4)
    kind = AttentionKind(12, soft_cap=1.0)
    whole = gathered_attention(layout, kind).run(q, k, v, cache)
    monkeypatch.setattr(scored, "_MAX_SCORES", 500)
    parts = gathered_attention(layout, kind).run(q, k, v, cache)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


def test_one_token_and_one_sink_share_by_their_scores() -> None:
    layout, q, k, v, cache = make_step([(1, 1)], (1, 1, 8), block_size=4)
    sinks = torch.tensor([0.3])
    found = gathered_attention(layout, AttentionKind()).run(q, k, v, cache, sinks)
    score = (q[0, 0] @ k[0, 0]) / 8**0.5
    torch.testing.assert_close(found[0, 0], v[0, 0] * torch.sigmoid(score - 0.3))
