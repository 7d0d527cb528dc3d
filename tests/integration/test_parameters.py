"""What each sampling and text parameter does, seen from outside, on one real cluster.

tests/parameter_rows.py lists every request field with the test that shows its behaviour; what a
client can see with the demo model is shown here. Greedy unless the row is about chance, and
chance has seeds, so each run sees the same draws.
"""

import itertools
import json
import math
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.parameter_api import NUM_DRAWS, TRANSLATE, Api
from tests.live import LiveCluster

pytestmark = pytest.mark.ray

BROAD = "She likes to"  # several words may well follow


@pytest.fixture(scope="module")
def api(cluster: LiveCluster) -> Api:
    return Api(cluster)


def test_temperature_one_draws_as_the_model_scores(api: Api) -> None:
    drawn, chances = api.draws(BROAD), api.chances(BROAD)
    for id_, chance in itertools.islice(chances.items(), 5):
        spread = math.sqrt(chance * (1 - chance) / NUM_DRAWS)
        assert drawn[id_] / NUM_DRAWS == pytest.approx(chance, abs=4 * spread + 0.01)


def test_temperature_zero_takes_the_likeliest_and_a_high_one_spreads(api: Api) -> None:
    likeliest = next(iter(api.chances(BROAD)))
    assert api.ids(BROAD, max_tokens=1) == [likeliest]
    cold, hot = (api.draws(BROAD, temperature=heat) for heat in (0.2, 2.0))
    assert cold[likeliest] > hot[likeliest] and len(hot) > len(cold)


def test_top_k_leaves_the_k_likeliest(api: Api) -> None:
    likeliest = list(api.chances(BROAD))
    assert set(api.draws(BROAD, top_k=2, temperature=2)) == set(likeliest[:2])
    assert set(api.draws(BROAD, top_k=1, temperature=2)) == {likeliest[0]}


def test_top_p_leaves_the_fewest_that_reach_p(api: Api) -> None:
    chances = list(api.chances(BROAD).items())
    # Between the sums of two and of three: exactly the third's share decides.
    top_p = sum(chance for _, chance in chances[:2]) + chances[2][1] / 2
    drawn = api.draws(BROAD, top_p=top_p)
    assert set(drawn) <= {id_ for id_, _ in chances[:3]}
    assert set(api.draws(BROAD, top_p=chances[0][1] / 2)) == {chances[0][0]}


def test_min_p_drops_what_is_unlikely_beside_the_likeliest(api: Api) -> None:
    chances = list(api.chances(BROAD).items())
    ratio = (chances[1][1] + chances[2][1]) / 2 / chances[0][1]  # between the second and the third
    assert set(api.draws(BROAD, min_p=ratio)) == {id_ for id_, _ in chances[:2]}


def test_seed_repeats_and_choices_differ(api: Api) -> None:
    sampled: dict[str, Any] = {"temperature": 2, "max_tokens": 12}
    three = api.texts(n=3, seed=5, **sampled)
    assert three == api.texts(n=3, seed=5, **sampled)
    assert three[0] == api.texts(seed=5, **sampled)[0]
    assert len(set(three)) == 3
    assert api.texts(seed=6, **sampled)[0] != three[0]


def test_best_of_answers_the_likeliest_of_its_candidates(api: Api) -> None:
    sampled: dict[str, Any] = {"temperature": 1.5, "max_tokens": 8, "seed": 3}
    candidates = api.text(n=4, logprobs=0, **sampled)["choices"]

    def mean(choice: Any) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    best = max(candidates, key=mean)
    answer = api.text(best_of=4, **sampled)
    assert answer["choices"][0]["text"] == best["text"]
    assert answer["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in candidates)


def test_logit_bias_forces_and_bans(api: Api) -> None:
    greedy = api.ids()[0]
    (wanted,) = api.encode(" Haus")
    assert api.ids(logit_bias={str(wanted): 100}, max_tokens=3) == [wanted] * 3
    assert greedy not in api.ids(logit_bias={str(greedy): -100}, max_tokens=12)


def test_allowed_token_ids_holds(api: Api) -> None:
    allowed = [*api.encode(" you"), *api.encode(" me"), *api.encode(" dog")]
    ids = api.ids(allowed_token_ids=allowed, temperature=2, seed=1, max_tokens=16)
    assert set(ids) <= set(allowed) and len(set(ids)) > 1


def test_bad_words_never_come(api: Api) -> None:
    text = api.texts(max_tokens=8)[0]
    word = text.split()[0]
    assert word not in api.texts(bad_words=[word], max_tokens=24)[0].split()


def gap(api: Api, wanted: float) -> tuple[dict[str, Any], int, int]:
    """A request whose first token is `a`, and whose second is `a` before `b` by `wanted`: a bias
    makes the distance, so the pair must be one where it leaves the first token as it is."""
    prompt = api.encode("I love")
    ids = list(api.chances("I love"))[:6]
    first = dict(zip(ids, api.scores([[*prompt, id_] for id_ in ids]), strict=True))
    for a in ids:
        second = dict(zip(ids, api.scores([[*prompt, a, id_] for id_ in ids]), strict=True))
        for b in ids:
            bias = second[a] - second[b] - wanted
            if b != a and abs(bias) < 50 and first[a] - first[b] - bias > 0.2:
                fields = {"allowed_token_ids": [a, b], "logit_bias": {str(b): bias}}
                return {"prompt": prompt, "max_tokens": 2, **fields}, a, b
    raise AssertionError("no two tokens fit")


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_a_penalty_is_subtracted_once_for_one_occurrence(api: Api, name: str) -> None:
    request, a, b = gap(api, 1.0)
    assert api.ids(**request) == [a, a]
    assert api.ids(**request, **{name: 0.9}) == [a, a]
    assert api.ids(**request, **{name: 1.1}) == [a, b]


def test_repetition_penalty_at_its_height_lets_nothing_come_twice(api: Api) -> None:
    answer = api.text(repetition_penalty=1e6, max_tokens=24, ignore_eos=True)["choices"][0]
    ids = answer["token_ids"]
    assert len(ids) == 24 == len(set(ids))
    assert not set(ids) & set(answer["prompt_token_ids"])


def test_max_tokens_ends_it_under_both_names(api: Api) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = api.chat(**{"max_tokens": 9, name: 2})
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 2


def test_min_tokens_delays_the_end(api: Api) -> None:
    alone = api.chat()
    assert alone["choices"][0]["finish_reason"] == "stop"
    wanted = alone["usage"]["completion_tokens"] + 5
    assert api.chat(min_tokens=wanted)["usage"]["completion_tokens"] >= wanted


def test_min_tokens_delays_stop_strings_too(api: Api) -> None:
    stop = api.texts()[0][:2]
    assert api.text(stop=stop)["usage"]["completion_tokens"] == 1
    assert api.text(stop=stop, min_tokens=3)["usage"]["completion_tokens"] >= 3


def test_ignore_eos_goes_on(api: Api) -> None:
    answer = api.chat(ignore_eos=True, max_tokens=40)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 40


def test_stop_strings_cut_and_may_be_included(api: Api) -> None:
    whole = api.chat()["choices"][0]["message"]["content"]
    assert whole == "Io amo programmare"
    cut = api.chat(stop=["never", "prog"])["choices"][0]
    assert cut["message"]["content"] == "Io amo "
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", "prog")
    kept = api.chat(stop="prog", include_stop_str_in_output=True)["choices"][0]
    assert kept["message"]["content"] == "Io amo prog"


def test_stop_token_ids_end_it_and_are_not_text(api: Api) -> None:
    ids = api.ids(max_tokens=4)
    choice = api.text(stop_token_ids=[ids[2]], max_tokens=4)["choices"][0]
    assert choice["token_ids"] == ids[:3]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[2])
    detokenized = api.post("/detokenize", {"tokens": ids[:2]})["prompt"]
    assert choice["text"] == detokenized


def test_timeout_ends_what_takes_longer(api: Api) -> None:
    answer = api.text(timeout=0.05, max_tokens=1500, ignore_eos=True, status=504)
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_truncate_prompt_tokens_keeps_one_side(api: Api) -> None:
    prompt = list(range(50, 80))
    for side, kept in ((None, prompt[-7:]), ("left", prompt[-7:]), ("right", prompt[:7])):
        answer = api.text(prompt, truncate_prompt_tokens=7, truncation_side=side)
        assert answer["choices"][0]["prompt_token_ids"] == kept
        assert answer["usage"]["prompt_tokens"] == 7


def test_continue_final_message_goes_on_in_it(api: Api) -> None:
    messages = [*TRANSLATE, {"role": "assistant", "content": "Io amo"}]
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    answer = api.chat(messages=messages, **fields)
    assert answer["choices"][0]["message"]["content"] == " programmare"


def test_add_generation_prompt_is_the_head_of_the_answer(api: Api) -> None:
    with_head, without = (
        api.chat(add_generation_prompt=adds, return_token_ids=True)["prompt_token_ids"]
        for adds in (True, False)
    )
    assert with_head[: len(without)] == without and len(with_head) > len(without)


def test_cache_salt_keeps_tenants_apart(api: Api) -> None:
    prompt = [100 + place * 7 % 900 for place in range(160)]

    def cached(salt: str) -> int:
        usage = api.text(prompt, max_tokens=1, cache_salt=salt)["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    one, two = uuid4().hex, uuid4().hex  # new to a server that has run these tests before
    assert (cached(one), cached(one)) == (0, 144)  # the last block is always computed
    assert (cached(two), cached(two)) == (0, 144)


def test_suffix_is_refused_by_a_model_without_such_tokens(api: Api) -> None:
    error = api.text(suffix=" the end", status=400)["error"]
    assert error["param"] == "suffix" and "shoal-demo" in error["message"]


def test_echo_puts_the_prompt_first(api: Api) -> None:
    assert api.texts("I love", echo=True) == ["I love" + api.texts("I love")[0]]


def test_return_token_ids_are_those_of_the_texts(api: Api) -> None:
    choice = api.text("I love")["choices"][0]
    for text, ids in (
        ("I love", choice["prompt_token_ids"]),
        (choice["text"], choice["token_ids"]),
    ):
        assert api.post("/detokenize", {"tokens": ids})["prompt"] == text


def test_prompt_logprobs_are_what_sampling_saw(api: Api) -> None:
    choice = api.text("I love", logprobs=2, max_tokens=4)["choices"][0]
    prompt, ids = choice["prompt_token_ids"], choice["token_ids"]
    scored = api.scores([[*prompt, *ids[: place + 1]] for place in range(4)])
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(scored, abs=0.02)
    entries = api.text([*prompt, *ids], prompt_logprobs=3)["choices"][0]["prompt_logprobs"]
    assert entries[0] is None and len(entries) == len(prompt) + 4
    for entry in entries[1:]:
        by_rank = sorted(entry.values(), key=lambda one: one["rank"])
        assert 3 <= len(by_rank) <= 4 and by_rank[0]["rank"] == 1
        assert by_rank[0]["logprob"] >= by_rank[-1]["logprob"]


def test_logprobs_have_the_form_of_their_endpoint(api: Api) -> None:
    text = api.text(logprobs=2, max_tokens=3)["choices"][0]
    assert "".join(text["logprobs"]["tokens"]) == text["text"]
    assert [len(top) for top in text["logprobs"]["top_logprobs"]] == [2, 2, 2]
    chat = api.chat(logprobs=True, top_logprobs=2, max_tokens=3)["choices"][0]
    for entry in chat["logprobs"]["content"]:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["top_logprobs"][0]["token"] == entry["token"]
    bare = api.chat(logprobs=True, max_tokens=1)["choices"][0]
    assert bare["logprobs"]["content"][0]["top_logprobs"] == []


def test_skip_special_tokens_hides_them(api: Api) -> None:
    special = api.encode("<|im_start|>")
    fields = {"logit_bias": {str(special[0]): 100}, "max_tokens": 2}
    assert len(special) == 1 and api.texts(**fields) == [""]
    shown = api.texts(**fields, skip_special_tokens=False)
    # Nothing stands between special tokens in a byte-level text, whatever is asked for.
    assert shown == ["<|im_start|><|im_start|>"]
    for spaces in (True, False):
        fields["spaces_between_special_tokens"] = spaces
        assert api.texts(**fields, skip_special_tokens=False) == shown


def test_request_id_names_the_answer(api: Api) -> None:
    assert api.text(request_id="my-7")["id"] == "cmpl-my-7"
    assert api.chat(request_id="my-8")["id"] == "chatcmpl-my-8"


def test_what_only_concerns_openais_own_service_is_taken(api: Api) -> None:
    plain = api.chat()["choices"]
    extra: dict[str, Any] = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    }
    assert api.chat(**extra, safety_identifier="s", prompt_cache_key="k")["choices"] == plain


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        ({"regex": "(ab|cd)e"}, {"abe", "cde"}),
        ({"choice": ["Rome", "Berlin"]}, {"Rome", "Berlin"}),
        ({"grammar": 'root ::= "x" ("y" | "z")'}, {"xy", "xz"}),
        ({"json": {"enum": ["on", "off"]}}, {'"on"', '"off"'}),
    ],
    ids=["regex", "choice", "grammar", "json"],
)
def test_structured_outputs_hold(api: Api, constraint: Any, allowed: set[str]) -> None:
    found = set(api.texts(structured_outputs=constraint, temperature=2, n=8, seed=1, max_tokens=9))
    assert found <= allowed
    assert api.chat(structured_outputs=constraint)["choices"][0]["message"]["content"] in allowed


def test_response_format_holds(api: Api) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
    }
    schema["additionalProperties"] = False
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = api.chat(response_format=format_, max_tokens=40)["choices"][0]["message"]["content"]
    assert json.loads(answer)["a"] in (1, 2)


def test_stream_joined_is_the_whole_answer_and_framed_as_clients_expect(api: Api) -> None:
    whole = api.chat()
    options = {"include_usage": True}
    chunks = api.chunks(messages=TRANSLATE, stream_options=options)
    *parts, usage = chunks
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert all("role" not in delta for delta in deltas[1:])
    text = "".join(delta.get("content") or "" for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    assert (
        usage["choices"] == [] and usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    )
    assert all(part.get("usage") is None for part in parts)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


def test_continuous_usage_stats_grow_with_the_answer(api: Api) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, prompt in (
        ("/v1/completions", {"prompt": "I love"}),
        ("/v1/chat/completions", {"messages": TRANSLATE}),
    ):
        counts = [
            chunk["usage"]["completion_tokens"]
            for chunk in api.chunks(path, **prompt, stream_options=options)
        ]
        assert counts == sorted(counts) and counts[0] < counts[-1]


def test_without_include_usage_there_is_none(api: Api) -> None:
    chunks = api.chunks(messages=TRANSLATE)
    assert all(chunk.get("usage") is None and chunk["choices"] for chunk in chunks)
