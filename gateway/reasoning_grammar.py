"""A grammar that begins where the model's thoughts end, and a budget for the thoughts themselves.

Both are one grammar for the engine, so that they hold exactly, at any place of a resumed answer.
Pure functions, used by gateway/planning.py.
"""

import re
from dataclasses import dataclass

from gateway.errors import InvalidRequestError
from gateway.grammar_text import options_line
from gateway.parsers.reasoning import ReasoningFormat, ReasoningStart
from gateway.text.mark_tokens import MarkTokens
from gateway.tokens import Grammar
from gateway.tool_grammar import answer_rule

# Some models go on with a line break or two; a constrained answer has no other place for them.
_GAP = r"/\n{0,2}/"


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How the thoughts of one request begin and end."""

    format: ReasoningFormat
    start: ReasoningStart
    marks: MarkTokens
    budget: int | None = None  # tokens
    forbidden_ids: tuple[int, ...] = ()  # must not end a thought whose answer is constrained
    lead: str = ""  # text in front of the answer

    @property
    def end_id(self) -> int | None:
        """The token that the end begins with; None: it is plain text."""
        return self.marks.first_id(self.format.ends[0])

    @property
    def begin_id(self) -> int | None:
        return self.marks.first_id(self.format.begins[0])


def behind_thoughts(answer: Grammar | None, thoughts: Thoughts) -> Grammar | None:
    """`answer` behind the thoughts; None: everything is free.

    Raises: InvalidRequestError where the budget cannot be kept.
    """
    has_none = thoughts.start is ReasoningStart.ANSWERING
    if has_none or (answer is None and thoughts.budget is None):
        return answer
    _check_budget(thoughts)
    if answer is None:
        return Grammar("lark", _free_answer(thoughts), trial="")
    rules = [f"start: {_begin(thoughts)} {_lead(thoughts)} answer", *_thought_rules(thoughts)]
    text = options_line(answer) + "\n".join([*rules, answer_rule(answer)])
    return Grammar("lark", text, answer.param, parts=(*answer.parts, answer), trial="")


def _check_budget(thoughts: Thoughts) -> None:
    is_token = thoughts.marks.id_of(thoughts.format.ends[0]) is not None
    can_open = thoughts.start is ReasoningStart.THINKING or thoughts.begin_id is not None
    if thoughts.budget is not None and not (is_token and can_open):
        raise InvalidRequestError(
            "thinking_token_budget cannot be kept for this model: its thoughts do not begin and "
            "end with single tokens.",
            param="thinking_token_budget",
        )


def _free_answer(thoughts: Thoughts) -> str:
    """Thoughts of limited length, once, and any other text."""
    begin_id = thoughts.begin_id
    other = "<[*]>" if begin_id is None else f"<[^{begin_id}]>"
    rules = [f"other: {other}*", *_thought_rules(thoughts)]
    if thoughts.start is ReasoningStart.THINKING:
        return "\n".join(["start: thoughts other", *rules])
    return "\n".join([f"start: other (<[{begin_id}]> thoughts other)?", *rules])


def _begin(thoughts: Thoughts) -> str:
    if thoughts.start is ReasoningStart.THINKING:
        return f"thoughts {_GAP}"
    begins = " | ".join(thoughts.marks.quote(mark) for mark in thoughts.format.begins)
    return f"(({begins}) thoughts {_GAP})?"


def _lead(thoughts: Thoughts) -> str:
    return thoughts.marks.quote(thoughts.lead) if thoughts.lead else ""


def _thought_rules(thoughts: Thoughts) -> list[str]:
    end_id = thoughts.end_id
    if end_id is None:
        ends = "|".join(re.escape(mark).replace("/", r"\/") for mark in thoughts.format.ends)
        return [f"thoughts[lazy]: /(?s:.*)({ends})/"]
    excluded = ",".join(map(str, (end_id, *thoughts.forbidden_ids)))
    limit = "*" if thoughts.budget is None else f"{{0,{thoughts.budget}}}"
    body = "" if thoughts.budget == 0 else f"(<[^{excluded}]>){limit} "
    return [f"thoughts: {body}{thoughts.marks.quote(thoughts.format.ends[0])}"]
