import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text.detokenizer import Detokenizer
from gateway.text.tokenizer import TextTokenizer
from tests.gateway.small_tokenizer import EOS_ID, byte_level_json, metaspace_json

BYTE_LEVEL = TextTokenizer(byte_level_json())
METASPACE = TextTokenizer(metaspace_json())


def pieces(
    tokenizer: TextTokenizer, ids: list[int], prompt: list[int] | None = None, skip: bool = True
) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt or [], skip_special_tokens=skip)
    return [*(detokenizer.push(id_) for id_ in ids), detokenizer.finish()]


def test_a_split_character_comes_out_whole_with_its_last_token():
    ids = BYTE_LEVEL.encode("a😀b", add_special_tokens=False)
    assert len(ids) == 6
    assert pieces(BYTE_LEVEL, ids) == ["a", "", "", "", "😀", "b", ""]


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_pieces_joined_are_the_text(text):
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False)
    assert "".join(pieces(BYTE_LEVEL, ids)) == text


@given(st.lists(st.integers(0, BYTE_LEVEL.num_ids - 1), max_size=60), st.booleans())
def test_any_ids_come_out_as_the_library_decodes_them(ids, skip):
    text = "".join(pieces(BYTE_LEVEL, ids, skip=skip))
    assert text.replace("\ufffd", "") == BYTE_LEVEL.decode(ids, skip_special_tokens=skip).replace(
        "\ufffd", ""
    )


def test_plain_tokens_are_those_whose_text_depends_on_nothing():
    ids = range(BYTE_LEVEL.num_ids)
    plain = {id_: text for id_ in ids if (text := BYTE_LEVEL.plain_texts[id_]) is not None}
    assert plain == {id_: BYTE_LEVEL.decode([id_]) for id_ in plain}
    assert len(plain) == BYTE_LEVEL.num_ids - 128  # all but the bytes of longer characters
    assert all(METASPACE.plain_texts[id_] is None for id_ in range(METASPACE.num_ids))
    assert BYTE_LEVEL.plain_texts[BYTE_LEVEL.num_ids + 7] is None


def test_special_tokens_that_are_text_are_shown_and_others_are_not():
    ids = BYTE_LEVEL.encode("hello", add_special_tokens=False)
    detokenizer = Detokenizer(BYTE_LEVEL, [EOS_ID, *ids], shown_ids=frozenset({0}))
    assert [detokenizer.push(id_) for id_ in (*ids, EOS_ID, 0, *ids)] == [
        *("hello", "", "<s>", "hello")
    ]


def test_an_unfinished_character_ends_as_replacement():
    ids = BYTE_LEVEL.encode("a😀", add_special_tokens=False)[:-1]
    assert "".join(pieces(BYTE_LEVEL, ids)) == "a\ufffd"


def test_special_tokens_are_left_out_or_shown_as_asked():
    ids = [*BYTE_LEVEL.encode("hello", add_special_tokens=False), EOS_ID]
    assert "".join(pieces(BYTE_LEVEL, ids)) == "hello"
    assert "".join(pieces(BYTE_LEVEL, ids, skip=False)) == "hello</s>"


def test_a_leading_space_survives_behind_a_prompt():
    """Metaspace decoders drop the space of the first token they see."""
    vocab = METASPACE.backend.get_vocab()
    hello, world = vocab["▁hello"], vocab["▁world"]
    assert "".join(pieces(METASPACE, [world], prompt=[hello])) == " world"
    assert "".join(pieces(METASPACE, [hello, world])) == "hello world"


def test_byte_fallback_tokens_make_one_character():
    ids = [2 + byte for byte in "é".encode()]
    hello = METASPACE.backend.get_vocab()["▁hello"]
    assert pieces(METASPACE, ids, prompt=[hello]) == ["", "é", ""]


def test_a_prompt_that_ends_inside_a_character_is_not_given_out_again():
    prompt = BYTE_LEVEL.encode("hello 😀", add_special_tokens=False)[:-2]
    the = BYTE_LEVEL.encode(" the", add_special_tokens=False)
    assert "".join(pieces(BYTE_LEVEL, the, prompt=prompt)) == " the"


@pytest.mark.parametrize("id_", [EOS_ID, BYTE_LEVEL.num_ids + 5])
def test_ids_without_text_are_not_collected(id_):
    """A model told to ignore the end may repeat it for thousands of steps."""
    detokenizer = Detokenizer(BYTE_LEVEL, [])
    assert all(detokenizer.push(id_) == "" for _ in range(50_000))
    the = BYTE_LEVEL.encode(" the", add_special_tokens=False)[0]
    assert detokenizer.push(the) == " the"


def test_broken_bytes_are_not_held_for_ever():
    lone = BYTE_LEVEL.encode("😀", add_special_tokens=False)[0]
    detokenizer = Detokenizer(BYTE_LEVEL, [])
    shown = "".join(detokenizer.push(lone) for _ in range(40))
    assert shown.count("\ufffd") >= 30
