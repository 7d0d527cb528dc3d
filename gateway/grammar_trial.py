"""The process in which grammars are tried before an engine sees them: `python -m
gateway.grammar_trial`.

A line of JSON in, {"kind", "text"}; a line out, {"problem"}, empty when the grammar can be used.
Compiles it and writes a little text under it. May hang or die of what it is given:
GrammarChecker, its parent, kills and replaces it then.
"""

import json
import os
import random
import sys
import threading
from typing import BinaryIO

from llguidance import LLMatcher, LLTokenizer

from protos.grammar_source import LIMITS, limit_memory, plain_problem, source

_MAX_MEMORY_BYTES = 1 << 30
_MAX_PROBLEM_CHARS = 600
_NUM_WALKS = 2
_STEPS_PER_WALK = 48


def problem_of(tokenizer: LLTokenizer, kind: str, text: str) -> str:
    """Empty: the grammar compiles, allows some text, and can be followed."""
    try:
        matcher = LLMatcher(tokenizer, source(kind, text), log_level=0, limits=LIMITS)
    except Exception as error:  # lone surrogates and the like; the library raises bare ones
        return str(error) or type(error).__name__
    for walk in range(_NUM_WALKS):
        if matcher.is_error():
            break
        _walk(matcher.deep_copy() if walk + 1 < _NUM_WALKS else matcher, random.Random(walk))
    if matcher.is_error():
        return plain_problem(matcher.get_error())
    return ""


def _walk(matcher: LLMatcher, choice: random.Random) -> None:
    """Writes a few tokens; what the parser cannot do it notes as its error."""
    for _ in range(_STEPS_PER_WALK):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error() or matcher.is_stopped():
            return
        allowed = [token_id for token_id in range(mask.bit_length()) if mask >> token_id & 1]
        matcher.consume_token(choice.choice(allowed))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    # Bytes for tokens: what a grammar costs is nearly all its own, and no model need be known.
    tokenizer = LLTokenizer("byte")
    limit_memory(_MAX_MEMORY_BYTES)
    for line in requests:
        grammar = json.loads(line)
        problem = problem_of(tokenizer, grammar["kind"], grammar["text"])[:_MAX_PROBLEM_CHARS]
        answers.write(json.dumps({"problem": problem}).encode() + b"\n")
        answers.flush()


def _exit_with_parent(parent: int) -> None:
    """The main thread may be in a computation that never ends, and read no end of its input."""
    while os.getppid() == parent:
        threading.Event().wait(1.0)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    serve(sys.stdin.buffer, sys.stdout.buffer)
