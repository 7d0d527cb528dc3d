"""Grammars are tried in processes of their own: bad ones are refused by name, and those that hang
or swell end their process, not the gateway.
"""

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import uvloop

from gateway.errors import InvalidRequestError, UnavailableError
from gateway.grammar_checker import GrammarChecker
from gateway.grammar_text import client_grammar
from gateway.tokens import Grammar
from tests.gateway.waiting import until

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


def trial_pids() -> set[int]:
    found: set[int] = set()
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "gateway.grammar_trial" in one.cmdline():
                found.add(one.pid)
    return found


async def test_a_grammar_whose_processes_die_fails_alone(checker: GrammarChecker):
    others = trial_pids()
    await checker.check(Grammar("regex", "warm"))
    trial = asyncio.create_task(checker.check(Grammar("lark", ENDLESS, "grammar")))
    await asyncio.sleep(0.2)
    (first,) = trial_pids() - others
    os.kill(first, 9)
    await until(lambda: bool(trial_pids() - others - {first}))  # it is tried again, in a new one
    await asyncio.sleep(0.2)
    (second,) = trial_pids() - others - {first}
    os.kill(second, 9)
    # Where the second one died before it was ready, a third has the grammar: that one hangs.
    with pytest.raises(InvalidRequestError, match=r"memory|takes more than"):
        await trial
    await checker.check(Grammar("regex", "others go on"))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_grammar_is_blamed_for_a_process_that_is_dying(new_loop):
    async def check() -> None:
        checker = GrammarChecker(num_processes=1)
        for number in range(4):
            await checker.check(Grammar("regex", f"a{number}"))
            [process] = checker._idle
            assert process._process is not None
            os.kill(process._process.pid, 9)  # and the loop has not heard of it
            await asyncio.sleep(0.002 * number)
        await checker.check(Grammar("regex", "others go on"))
        await checker.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(check())


async def test_a_process_that_does_not_start_is_started_again(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nmkdir {tmp_path}/was-here && exit 1\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    await checker.check(Grammar("regex", "[ab]{3}"))


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


def test_grpc_does_not_touch_the_children_of_a_gateway():
    """Its handlers around fork() broke one of ten. They tell of themselves where they are on."""
    code = (
        "import gateway.scheduler_client, asyncio, sys, uvloop\n"
        "async def main():\n"
        "    channel = gateway.scheduler_client.grpc.aio.insecure_channel('127.0.0.1:1')\n"
        "    channel.get_state(try_to_connect=True)\n"
        "    child = await asyncio.create_subprocess_exec(sys.executable, '-c', '')\n"
        "    sys.exit(await child.wait())\n"
        "uvloop.run(main())\n"
    )
    env = {name: value for name, value in os.environ.items() if "GRPC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, timeout=60, check=True
    )
    assert b"fork" not in done.stderr, done.stderr


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
