import pytest

from gateway.errors import InvalidRequestError
from gateway.text.tokenizer import TextTokenizer
from tests.gateway.small_tokenizer import BOS_ID, EOS_ID, byte_level_json, metaspace_json

BYTE_LEVEL = TextTokenizer(byte_level_json())
METASPACE = TextTokenizer(metaspace_json())


def test_special_tokens_are_added_only_where_asked():
    with_bos = BYTE_LEVEL.encode("hello", add_special_tokens=True)
    assert with_bos == [BOS_ID, *BYTE_LEVEL.encode("hello", add_special_tokens=False)]


def test_token_bytes_joined_are_the_text_in_utf8():
    text = "hello 😀 é"
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False)
    assert b"".join(BYTE_LEVEL.token_bytes(id_) for id_ in ids) == text.encode()


def test_token_bytes_of_special_and_unknown_ids():
    assert BYTE_LEVEL.token_bytes(EOS_ID) == b"</s>"
    assert BYTE_LEVEL.token_bytes(BYTE_LEVEL.num_ids + 1) == b""


def test_token_bytes_of_a_sentencepiece_vocabulary():
    vocab = METASPACE.backend.get_vocab()
    assert METASPACE.token_bytes(vocab["▁world"]) == b" world"
    assert METASPACE.token_bytes(vocab["<0xC3>"]) == b"\xc3"


def test_lone_surrogates_are_the_clients_error():
    with pytest.raises(InvalidRequestError, match="not valid Unicode") as caught:
        BYTE_LEVEL.encode("\ud800", add_special_tokens=False, param="messages")
    assert caught.value.param == "messages"


def test_truncation_of_the_file_is_not_applied():
    from tokenizers import Tokenizer

    cut = Tokenizer.from_str(byte_level_json().decode())
    cut.enable_truncation(4)
    cut.enable_padding(length=64)
    ids = TextTokenizer(cut.to_str().encode()).encode("hello " * 20, add_special_tokens=False)
    assert len(ids) > 20 and len(ids) != 64
