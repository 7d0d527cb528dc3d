"""The start-up lines, as a file or a pipe gets them."""

import io

import pytest

from cluster.display import Display, human_bytes


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class FlushCounter(io.StringIO):
    flushes = 0

    def flush(self) -> None:
        self.flushes += 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_phase_shows_total_and_own_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    display = Display(out, io.StringIO(), clock, started_at=49.5)
    clock.now = 53.0
    display.phase("Ray started", "2 CPUs", 2.25)
    assert out.getvalue() == "[  3.50 s] Ray started          2.25 s  2 CPUs\n"
    assert display.elapsed_s == 3.5


def test_every_line_is_flushed_since_somebody_may_be_waiting_for_it() -> None:
    out = FlushCounter()
    display = Display(out, io.StringIO())
    display.phase("one")
    display.text("two")
    assert out.flushes == 2


def test_what_is_being_waited_for_is_not_in_a_file() -> None:
    out = io.StringIO()
    display = Display(out, io.StringIO())
    display.working("Starting Ray")
    display.close()
    assert out.getvalue() == ""


def test_errors_and_warnings_go_to_the_other_stream() -> None:
    out, err = io.StringIO(), io.StringIO()
    display = Display(out, err)
    display.warn("careful")
    display.fail("no weights")
    assert out.getvalue() == ""
    assert err.getvalue() == "shoal: warning: careful\nshoal: error: no weights\n"


def test_terminal_shows_text_with_brackets_unchanged() -> None:
    out = Terminal()
    display = Display(out, io.StringIO())
    display.working("Starting Ray")
    display.phase("Model found", "[bold]path[/bold]")
    display.text("messages = [('human', 'x')]")
    display.close()
    assert "[bold]path[/bold]" in out.getvalue()
    assert "messages = [('human', 'x')]" in out.getvalue()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (6824448, "6.5 MiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_have_binary_units(size: int, text: str) -> None:
    assert human_bytes(size) == text


def test_what_lasts_says_so_every_few_seconds_in_a_file() -> None:
    out, clock = io.StringIO(), Clock()
    display = Display(out, io.StringIO(), clock)
    for second in range(12):
        clock.now = 50.0 + second
        display.progress("Weights", f"{second} of 12 GiB", second / 12)
    lines = out.getvalue().splitlines()
    assert lines == [
        "[  5.00 s] Weights                 42%  5 of 12 GiB",
        "[ 10.00 s] Weights                 83%  10 of 12 GiB",
    ]


def test_quick_phase_adds_no_progress_line() -> None:
    out, clock = io.StringIO(), Clock()
    display = Display(out, io.StringIO(), clock)
    clock.now = 54.0
    display.phase("Shard actors")
    clock.now = 58.0
    display.progress("Weights", "1 of 2 GiB", 0.5)
    assert "Weights" not in out.getvalue()


def test_what_lasts_is_a_bar_on_a_terminal() -> None:
    out = Terminal()
    display = Display(out, io.StringIO())
    display.progress("Weights", "1 of 4 GiB", 0.25)
    display.close()
    bar = "\N{FULL BLOCK}" * 5 + "\N{LIGHT SHADE}" * 15
    assert f"Weights {bar}  25%  1 of 4 GiB" in out.getvalue()
