import pytest

from gateway.auth import ApiKeys
from gateway.errors import AuthenticationError


def test_without_keys_everybody_may_ask():
    assert ApiKeys(()).tenant(None) == ""


@pytest.mark.parametrize("header", [b"Bearer two", b"bearer two", b"Bearer  two "])
def test_any_of_the_keys_lets_in(header):
    assert ApiKeys(("one", "two")).tenant(header) != ""


def test_tenants_differ_by_key_and_do_not_show_it():
    keys = ApiKeys(("one", "two"))
    first, second = keys.tenant(b"Bearer one"), keys.tenant(b"Bearer two")
    assert first != second
    assert "one" not in first
    assert ApiKeys(("one",)).tenant(b"Bearer one") == first


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer on", b"Basic one", b"one", b"Bearer \xff"]
)
def test_everybody_else_is_refused(header):
    with pytest.raises(AuthenticationError):
        ApiKeys(("one", "two")).tenant(header)
