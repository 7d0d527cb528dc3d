"""Thoughts and answers are told apart the same way however the text is cut."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.parsers import reasoning_formats
from gateway.parsers.answer import AnswerReading
from gateway.parsers.events import Content, Reasoning
from gateway.parsers.harmony import HARMONY
from gateway.parsers.reasoning import ReasoningFormat, ReasoningStart
from gateway.parsers.reasoning_formats import DEEPSEEK_R1, GRANITE, GRANITE33, KIMI_K2, QWEN3, THINK

OPEN, THINKING, ANSWERING = ReasoningStart.OPEN, ReasoningStart.THINKING, ReasoningStart.ANSWERING
UNKNOWN_CALL = "<|channel|>commentary to=functions.rm <|constrain|>json<|message|>{}"
THOUGHTS = (
    *("Hm.", "1 < 2\n\nso {x}", "é 東京 </thin", "a\n b ", "<tool", "Here is my", "[/THIN"),
    "The user wants two sums, so I add first and then say both.",
)
ANSWERS = ("42", "Yes.\n", "a <b>\n\n c", '{"a": 1}', "</", "東京 🗼", "<|", "It is 12 °C.")


def read(
    thinks: ReasoningFormat, start: ReasoningStart, pieces: list[str]
) -> tuple[str, str, list[bool]]:
    """Thoughts, answer, and whether the reader said after each piece that it was thinking."""
    reader = AnswerReading(thinks, start, {}).make_reader()
    thoughts, answer, was_thinking = "", "", []
    for piece in [*pieces, None]:
        events = reader.finish() if piece is None else reader.feed(piece)
        was_thinking.append(reader.is_thinking)
        for event in events:
            assert isinstance(event, Content | Reasoning)
            thoughts += event.text if isinstance(event, Reasoning) else ""
            answer += event.text if isinstance(event, Content) else ""
    return thoughts, answer, was_thinking


@pytest.mark.parametrize(
    ("thinks", "start", "text", "thoughts", "answer"),
    [
        (THINK, OPEN, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        (THINK, OPEN, "\n<think>Hm.</think>Yes.\n", "Hm.", "Yes.\n"),
        (THINK, OPEN, " no thought, 1 <think> 2", "", " no thought, 1 <think> 2"),
        (THINK, OPEN, "<thin", "", "<thin"),
        (THINK, OPEN, "<think></think>Yes", "", "Yes"),
        (THINK, OPEN, "<think>Hm, cut </thi", "Hm, cut </thi", ""),
        (THINK, THINKING, "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        (THINK, THINKING, "<think>Hm.</think>Yes.", "Hm.", "Yes."),
        (THINK, ANSWERING, "Yes, <think>no</think>", "", "Yes, <think>no</think>"),
        (THINK, OPEN, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        (QWEN3, THINKING, "Hm. <tool_call>{}", "Hm.", "<tool_call>{}"),
        (KIMI_K2, OPEN, "<think>Hm<|tool_calls_section_begin|>x", "Hm",
         "<|tool_calls_section_begin|>x"),
        (GRANITE, OPEN, "Here's my thought process: Hm. Here is my response: Yes.", "Hm.", "Yes."),
        (GRANITE, OPEN, "Here is the answer", "", "Here is the answer"),
        (GRANITE33, OPEN, "<think>Hm.</think>\n<response>\n Yes.\n</response>\n", "Hm.", "Yes.\n"),
        (GRANITE33, THINKING, "Hm.</think>Yes. </response>", "Hm.", "Yes. </response>"),
        (GRANITE33, OPEN, "<think>Hm.</think><respo", "Hm.", "<respo"),
        (GRANITE33, OPEN, "<think>Hm.</think><response>cut </resp", "Hm.", "cut </resp"),
        (GRANITE33, OPEN, "<think>Hm.</think><response>  ", "Hm.", ""),
        (reasoning_formats.MISTRAL, OPEN, "[THINK]Hm[/THINK]Yes", "Hm", "Yes"),
        (HARMONY, OPEN, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final"
         "<|message|>Yes.\n<|return|>", "Hm.", "Yes.\n"),
        (HARMONY, OPEN, "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>"
         "commentary<|message|>I will.<|end|><|start|>assistant<|channel|>analysis<|message|>b"
         "<|end|><|start|>assistant<|channel|>final<|message|>Yes", "a\nb", "I will.\nYes"),
        (HARMONY, OPEN, "no marks at all", "", "no marks at all"),
        (HARMONY, OPEN, "to be <|or|> not", "", "to be <|or|> not"),
        (HARMONY, ANSWERING, " goes on<|return|>", "", " goes on"),
        (HARMONY, OPEN, "<|channel|>analysis<|message|>cut <|en", "cut <|en", ""),
        (HARMONY, OPEN, "<|channel|>final<|message|>x<|end|><|start|>assis", "", "x"),
        (HARMONY, OPEN, UNKNOWN_CALL + "<|call|>", "", UNKNOWN_CALL),
    ],
)  # fmt: skip
def test_every_cut_tells_thoughts_from_answer(thinks, start, text, thoughts, answer):
    assert read(thinks, start, [text])[:2] == (thoughts, answer)
    assert read(thinks, start, list(text))[:2] == (thoughts, answer)
    for place in range(len(text)):
        assert read(thinks, start, [text[:place], text[place:]])[:2] == (thoughts, answer)


def fifty_answers(thinks: ReasoningFormat) -> list[tuple[ReasoningStart, str, str, str | None]]:
    """Where each starts, its text, its thoughts, and its answer: None where it was cut off."""
    made = []
    for place, (thoughts, answer) in enumerate(list(product(THOUGHTS, ANSWERS))[:50]):
        mark = thinks.begins[place % len(thinks.begins)]
        end = thinks.ends[place % len(thinks.ends)] + thinks.before_answer
        framed = answer.join(thinks.answer_marks or ("", ""))
        opens = thinks.has_channels or place % 2 == 0
        space = "" if thinks.has_channels else "\n"
        text = f"{mark if opens else ''}{space}{thoughts}{space}{end}{2 * space}{framed}"
        start = OPEN if opens else THINKING
        if place % 10 == 9:
            text = text[: len(text) * place // 50]
            made.append((start, text, thoughts, None))
        else:
            made.append((start, text, thoughts, answer))
    assert len({(start, text) for start, text, _, _ in made}) == 50
    return made


@pytest.mark.parametrize("thinks", [*reasoning_formats.ALL, HARMONY], ids=lambda one: one.name)
def test_every_cut_of_fifty_answers_reads_the_same(thinks):
    for start, text, thoughts, answer in fifty_answers(thinks):
        whole = read(thinks, start, [text])[:2]
        if answer is not None:
            told = thoughts if thinks.has_channels else thoughts.strip()
            assert whole == (told, answer.rstrip() if thinks.answer_marks else answer)
        for cut in range(1, len(text)):
            assert read(thinks, start, [text[:cut], text[cut:]])[:2] == whole
        assert read(thinks, start, list(text))[:2] == whole


@given(
    st.sampled_from([*reasoning_formats.ALL, HARMONY]),
    st.sampled_from(ReasoningStart),
    st.lists(
        st.sampled_from(
            [
                *("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "analysis", "final"),
                *("<|message|>", "<|end|>", "<|start|>assistant", "<|call|>", " to=functions.x"),
                *("<response>", "</response>"),
                *("Here is my thought process:", "Here is my response:", " ", "\n", "<", "x"),
            ]
        ),
        max_size=12,
    ),
    st.data(),
)
def test_any_text_reads_the_same_in_pieces(thinks, start, parts, data):
    text = "".join(parts)
    cut = data.draw(st.integers(0, len(text)))
    whole = read(thinks, start, [text])[:2]
    assert read(thinks, start, list(text))[:2] == whole
    assert read(thinks, start, [text[:cut], text[cut:]])[:2] == whole


def test_thoughts_are_known_as_such_token_by_token():
    pieces = ["<think>", "\n", "a", " b", "</think>", "\n\n", "Yes"]
    _, _, was_thinking = read(THINK, OPEN, pieces)
    assert was_thinking[:7] == [True, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("thinks", "prompt", "continued", "start"),
    [
        (THINK, "<user>what is <think>?\n<assistant>", None, OPEN),
        (THINK, "<assistant><think>\n", None, THINKING),
        (THINK, "<assistant><think>\n\n</think>\n\n", None, ANSWERING),
        (THINK, "<assistant></think>", None, ANSWERING),
        (THINK, "…<think>so", "<think>so", THINKING),
        (THINK, "…</think>Yes", "<think>so</think>Yes", ANSWERING),
        (DEEPSEEK_R1, "<assistant>", None, THINKING),
        (DEEPSEEK_R1, "<assistant><think>\n\n</think>", None, ANSWERING),
        (HARMONY, "<|start|>user<|message|>hi<|end|><|start|>assistant", None, OPEN),
        (HARMONY, "…<|channel|>final<|message|>The", "The", ANSWERING),
    ],
)
def test_the_prompt_says_where_the_answer_begins(thinks, prompt, continued, start):
    assert thinks.start(prompt, continued) is start
