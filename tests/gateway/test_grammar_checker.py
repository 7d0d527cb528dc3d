"""Grammars are tried in processes of their own: bad ones are refused by name, and those that hang
or swell end their process, not the gateway.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator

import pytest

from gateway.errors import InvalidRequestError, UnavailableError
from gateway.grammar_checker import GrammarChecker
from gateway.grammar_text import client_grammar
from gateway.tokens import Grammar

ENDLESS = "start: /a+/ /a+/ start?"  # its forced text has no end, and the library looks for it


@pytest.fixture
async def checker() -> AsyncIterator[GrammarChecker]:
    checker = GrammarChecker(num_processes=1, trial_timeout_s=1.5)
    yield checker
    await checker.close()


async def refusal(checker: GrammarChecker, grammar: Grammar) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refused:
        await checker.check(grammar)
    return refused.value


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "[a-z]{1,5}"),
        Grammar("json_schema", '{"type": "object"}'),
        Grammar("lark", 'start: "é" start?'),
        client_grammar(ENDLESS, "grammar"),
    ],
    ids=lambda grammar: grammar.text,
)
async def test_what_can_be_used_passes(checker: GrammarChecker, grammar: Grammar):
    await checker.check(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "a(b", "p"),
        Grammar("json_schema", '{"type": "objct"}', "p"),
        Grammar("json_schema", '{"type": "integer", "not": {"const": 3}}', "p"),
        Grammar("json_schema", "false", "p"),
        Grammar("lark", "start: nothing", "p"),
        Grammar("regex", "\ud800", "p"),
    ],
    ids=lambda grammar: ascii(grammar.text),
)
async def test_what_cannot_is_refused_by_name(checker: GrammarChecker, grammar: Grammar):
    error = await refusal(checker, grammar)
    assert error.param == "p"
    assert error.message.startswith("p cannot be used as a constraint: ")


async def test_a_grammar_that_hangs_is_ended_in_time_and_remembered(checker: GrammarChecker):
    await checker.check(Grammar("regex", "warm"))
    started = time.monotonic()
    error = await refusal(checker, Grammar("lark", ENDLESS, "grammar"))
    assert "takes more than" in error.message
    assert time.monotonic() - started < 10
    again = time.monotonic()
    await refusal(checker, Grammar("lark", ENDLESS, "grammar"))
    assert time.monotonic() - again < 0.5
    await checker.check(Grammar("regex", "others go on"))


async def test_a_process_that_dies_fails_its_grammar_alone(checker: GrammarChecker):
    await checker.check(Grammar("regex", "warm"))
    [process] = checker._idle
    assert process._process is not None
    trial = asyncio.create_task(checker.check(Grammar("lark", ENDLESS, "grammar")))
    await asyncio.sleep(0.2)
    os.kill(process._process.pid, 9)
    with pytest.raises(InvalidRequestError, match="memory"):
        await trial
    await checker.check(Grammar("regex", "others go on"))


async def test_no_grammar_is_blamed_for_a_process_that_died_idle(checker: GrammarChecker):
    await checker.check(Grammar("regex", "warm"))
    [process] = checker._idle
    assert process._process is not None
    os.kill(process._process.pid, 9)
    async with asyncio.timeout(5):
        await process._process.wait()
    await checker.check(Grammar("regex", "others go on"))


async def test_no_grammar_is_blamed_where_no_process_can_be_started(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
):
    grammar = Grammar("regex", "[ab]{3}")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(UnavailableError):
            await checker.check(grammar)
    await checker.check(grammar)


async def test_what_becomes_of_a_trial_that_nobody_waits_for_is_no_error_of_the_loop(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
):
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    leaving = asyncio.create_task(checker.check(Grammar("regex", "[ab]{3}")))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait(checker._running.values(), timeout=5)
    await asyncio.sleep(0)
    gc.collect()
    assert not checker._running
    assert told == []


async def test_equal_grammars_are_tried_once(checker: GrammarChecker):
    schema = {"type": "integer", "multipleOf": 4999}  # takes a while
    grammar = Grammar("json_schema", json.dumps(schema))
    await asyncio.gather(*(checker.check(grammar) for _ in range(50)))
    assert len(checker._problems) == 1
    started = time.monotonic()
    await checker.check(grammar)
    assert time.monotonic() - started < 0.05


async def test_a_client_that_leaves_ends_nobody_elses_trial(checker: GrammarChecker):
    grammar = Grammar("regex", "[ab]{3}")
    first, second = (asyncio.create_task(checker.check(grammar)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second


async def test_the_smallest_wrong_part_is_named(checker: GrammarChecker):
    part = Grammar("json_schema", '{"type": 5}', "tools[0].function.parameters")
    error = await refusal(checker, Grammar("lark", 'start: "a"', "tools", parts=(part,)))
    assert error.param == "tools[0].function.parameters"


async def test_refusals_quote_little(checker: GrammarChecker):
    error = await refusal(checker, Grammar("regex", "(" + "x" * 5000, "p"))
    assert len(error.message) < 500


async def test_closing_ends_the_processes():
    checker = GrammarChecker(num_processes=2)
    await asyncio.gather(*(checker.check(Grammar("regex", f"a{i}")) for i in range(8)))
    pids = [p._process.pid for p in checker._idle if p._process is not None]
    assert 1 <= len(pids) <= 2
    await checker.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
