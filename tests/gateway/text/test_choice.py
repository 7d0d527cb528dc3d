import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import EngineError, UnavailableError
from gateway.text.choice import Choice, ChoiceEvent, TextSettings
from gateway.tokens import Timing, TokenDelta
from tests.gateway.fake_router import ids_of, scores, tokenizer
from tests.gateway.small_tokenizer import EOS_ID

TOKENIZER = tokenizer()
PROMPT = ids_of("hello")


def run(choice: Choice, deltas: list[TokenDelta], group: int = 1) -> list[ChoiceEvent]:
    events = []
    for place in range(0, len(deltas), group):
        if choice.finish_reason is None:
            events.append(choice.feed(deltas[place : place + group]))
    return events


def make(**settings: object) -> Choice:
    return Choice(0, PROMPT, TOKENIZER, TextSettings(**settings))


def deltas_of(text: str, finish: str = "stop") -> list[TokenDelta]:
    ids = [*ids_of(text), EOS_ID] if finish == "stop" else ids_of(text)
    deltas = [TokenDelta([id_], logprobs=[scores(id_, 1)]) for id_ in ids]
    deltas[-1] = TokenDelta(deltas[-1].token_ids, finish, deltas[-1].logprobs)
    return deltas


def text_of(events: list[ChoiceEvent]) -> str:
    return "".join(event.text for event in events)


def test_text_comes_as_its_tokens_come():
    events = run(make(), deltas_of("hello world"))
    assert [event.text for event in events] == ["hello", " world", ""]
    assert events[-1].finish_reason == "stop"
    assert events[-1].stop_reason is None


def test_stop_string_cuts_the_text_and_ends_the_choice():
    choice = make(stops=(" the",))
    events = run(choice, deltas_of("hello the cat", finish="length"))
    assert text_of(events) == "hello"
    assert (choice.finish_reason, events[-1].stop_reason) == ("stop", " the")
    assert choice.num_tokens == 2


def test_stop_string_may_be_included():
    events = run(make(stops=("o t",), include_stop=True), deltas_of("hello the cat"))
    assert text_of(events) == "hello t"


def test_held_text_is_shown_when_the_end_comes():
    events = run(make(stops=("world!!",)), deltas_of("hello world"))
    assert text_of(events) == "hello world"


def test_stop_strings_wait_for_min_tokens():
    choice = make(stops=("hello",), min_tokens=2)
    events = run(choice, deltas_of("hello world hello", finish="length"))
    assert text_of(events).startswith("hello world")
    assert choice.finish_reason == "stop"


def test_the_clients_stop_token_is_named_and_hidden():
    the = ids_of(" the")[0]
    deltas = [TokenDelta(ids_of("hello")), TokenDelta([the], "stop")]
    events = run(make(stop_token_ids=frozenset({the})), deltas)
    assert text_of(events) == "hello"
    assert events[-1].stop_reason == the
    shown = run(make(stop_token_ids=frozenset({the}), include_stop=True), deltas)
    assert text_of(shown) == "hello the"


def test_a_length_end_hides_no_token():
    assert text_of(run(make(), deltas_of("hello the", finish="length"))) == "hello the"


def test_logprobs_carry_text_offsets():
    events = run(make(wants_logprobs=True), deltas_of("hello world", finish="length"))
    tokens = [token for event in events for token in event.logprobs or []]
    assert [token.offset for token in tokens] == [0, 5]


def test_logprobs_behind_a_stop_string_are_dropped():
    choice = make(wants_logprobs=True, stops=("world",))
    ids = ids_of("hello world the cat")
    delta = TokenDelta(ids, "length", [scores(id_, 0) for id_ in ids])
    event = choice.feed([delta])
    assert event.token_ids == ids[:2]
    assert [token.token_id for token in event.logprobs or []] == ids[:2]


def test_timing_of_the_last_word_counts():
    choice = make()
    choice.feed([TokenDelta(PROMPT, timing=Timing(num_cached_tokens=7))])
    choice.feed([TokenDelta([EOS_ID], "stop", timing=Timing(7, decode_s=2.0))])
    assert choice.timing.decode_s == 2.0


@pytest.mark.parametrize(("reason", "error"), [("error", EngineError), ("abort", UnavailableError)])
def test_an_answer_cut_short_is_no_answer(reason, error):
    with pytest.raises(error):
        make().feed([TokenDelta([], reason)])


def test_echo_comes_with_the_first_event():
    settings = TextSettings(wants_logprobs=True, echoes_prompt_logprobs=True)
    prompt = ids_of("hello world")
    choice = Choice(0, prompt, TOKENIZER, settings, echo_text="hello world")
    the = ids_of(" the")[0]
    prompt_scores = [scores(id_, 0) for id_ in prompt[1:]]
    event = choice.feed([TokenDelta([the], "length", [scores(the, 0)], prompt_scores)])
    assert event.text == "hello world the"
    assert [(token.offset, token.scores is None) for token in event.logprobs or []] == [
        (0, True),
        (5, False),
        (11, False),
    ]


def test_dropped_output_leaves_the_echo_only():
    choice = Choice(0, PROMPT, TOKENIZER, TextSettings(drops_output=True), echo_text="hello")
    event = choice.feed([TokenDelta(ids_of(" the"), "length")])
    assert (event.text, event.finish_reason, choice.num_tokens) == ("hello", "length", 0)


@given(
    st.text("helo wrdtca😀", max_size=30),
    st.lists(st.text("helo w", min_size=1, max_size=3), max_size=2).map(tuple),
    st.integers(1, 8),
)
def test_grouping_of_deltas_changes_nothing(text, stops, group):
    deltas = deltas_of(text)
    one, many = make(stops=stops), make(stops=stops)
    single, grouped = run(one, deltas), run(many, deltas, group)
    assert text_of(single) == text_of(grouped)
    assert (one.num_tokens, one.finish_reason) == (many.num_tokens, many.finish_reason)
    assert single[-1].stop_reason == grouped[-1].stop_reason
