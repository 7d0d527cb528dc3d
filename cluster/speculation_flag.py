"""The value of `--speculative-config`: vLLM's JSON for n-gram speculation, or "auto" or "off".

Standard library only; `cluster.arguments` uses it as the flag's type.
"""

import argparse
import json

from worker.config import SpeculationConfig

_COUNTS = {
    "num_speculative_tokens": 64,
    "prompt_lookup_max": 32,
    "prompt_lookup_min": 32,
}  # and the most that makes sense of each


def speculation(text: str) -> SpeculationConfig | None:
    """None: off. As in vLLM, one of the look-up lengths given alone stands for both.

    Raises: argparse.ArgumentTypeError naming the field and what it takes.
    """
    if text.strip() in ("off", "none"):
        return None
    if text.strip() == "auto":
        return SpeculationConfig()
    given = _mapping(text)
    counts = {name: _count(name, given[name]) for name in _COUNTS if name in given}
    longest = counts.get("prompt_lookup_max", counts.get("prompt_lookup_min"))
    shortest = counts.get("prompt_lookup_min", longest)
    if longest is not None and shortest is not None:
        if shortest > longest:
            raise argparse.ArgumentTypeError(
                f"prompt_lookup_min ({shortest}) is above prompt_lookup_max ({longest})"
            )
        counts |= {"prompt_lookup_max": longest, "prompt_lookup_min": shortest}
    return SpeculationConfig(**counts)


def _mapping(text: str) -> dict[str, object]:
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not "auto", "off" or a JSON object')
    method = given.get("method")
    if method != "ngram":
        raise argparse.ArgumentTypeError(f'method must be "ngram", not {method!r}')
    unknown = sorted(set(given) - {"method", *_COUNTS})
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)}: not known; it takes method, {', '.join(_COUNTS)}"
        )
    return given


def _count(name: str, value: object) -> int:
    most = _COUNTS[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"{name} must be from 1 to {most}, not {value!r}")
    return value
