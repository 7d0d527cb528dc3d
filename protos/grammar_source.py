"""What a grammar of protos/common.proto means to llguidance, and how much of it one may ask for.

Shared by the gateway's check and the worker's mask process, so that what passes the one means the
same to the other. Both are processes that can be killed: limits here bound the ordinary case, time
and memory limits there the rest.
"""

import os
import resource

from llguidance import LLMatcher, LLParserLimits

# The library's fuel: about 50k units a millisecond at compilation, 14k a millisecond in a mask.
LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=10_000,  # alternatives at one place, as of a large enum
    max_lexer_states=100_000,  # 1-2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,
)

# First line of a grammar that a client wrote. The library looks for text that is forced byte by
# byte, and that search has no limit: in `start: /a+/ /a+/ start?` it never ends.
UNFORCED = '%llguidance {"no_forcing": true}\n'


def source(kind: str, text: str) -> str:
    """One string for all kinds, as LLMatcher takes it. Raises: ValueError for text that is none."""
    match kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(text)
        case "regex":
            return LLMatcher.grammar_from_regex(text)
        case "lark":
            return LLMatcher.grammar_from_lark(text)
    raise ValueError(f"grammar of the unknown kind {kind!r}")


def plain_problem(problem: str) -> str:
    """The library's message as a client can use it."""
    problem = problem.replace("<non-verbose/>", "").strip()
    if problem.startswith("NoExtension"):
        return "there is no text that it allows"
    return problem or "unknown error"


def cpu_seconds(pid: int) -> float | None:
    """What a process has computed so far: on a busy machine that, and not the clock, says whether
    it hangs. None where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limit_memory(more_bytes: int) -> None:
    """This process may take so much address space beyond what it has; then allocation fails and it
    dies. No limit where the system does not tell what it has."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            now = int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + more_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
