"""Which of a prompt's candidates are answered where `best_of` asks for more than `n`. Pure.

Called by the route of text completions with the whole answers.
"""

from collections.abc import Sequence

from gateway.whole_answer import ChoiceResult


def best_of(results: Sequence[ChoiceResult], num_candidates: int, n: int) -> list[ChoiceResult]:
    """Of each prompt's `num_candidates` neighbours the `n` whose tokens are on average the most
    likely, the best first; of equals the earlier."""
    chosen: list[ChoiceResult] = []
    for start in range(0, len(results), num_candidates):
        of_prompt = results[start : start + num_candidates]
        chosen += sorted(of_prompt, key=_mean_logprob, reverse=True)[:n]
    return chosen


def _mean_logprob(result: ChoiceResult) -> float:
    """Of the generated tokens; those of an echoed prompt stand before them, the same for all."""
    num_generated = len(result.token_ids)
    scored = (result.logprobs or [])[-num_generated:] if num_generated else []
    values = [token.scores.logprob for token in scored if token.scores is not None]
    return sum(values) / len(values) if values else float("-inf")
