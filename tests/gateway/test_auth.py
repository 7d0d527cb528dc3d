"""Keys and the file that names them."""

import asyncio
import hashlib
import os

import pytest

from gateway.auth import ApiKeys, KeyRing, unnamed_tenants
from gateway.errors import AuthenticationError
from gateway.tenants import KeyFileError, Limits, read_key_file
from tests.gateway.waiting import until

YAML = """
keys:
  - name: team-a
    key: sk-a
    requests_per_minute: 60
    tokens_per_minute: 1000
    max_concurrent: 4
    models: [tiny]
    priority: 5
    max_tokens: 100
  - name: team-b
    hash: [%s, %s]
"""


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def keys_of(*keys: str) -> ApiKeys:
    return ApiKeys(unnamed_tenants(keys), is_open=not keys)


def test_without_keys_everybody_may_ask():
    assert keys_of().tenant(None).name == ""


@pytest.mark.parametrize("header", [b"Bearer two", b"bearer two", b"Bearer  two "])
def test_any_of_the_keys_lets_in(header):
    assert keys_of("one", "two").tenant(header).name != ""


def test_tenants_differ_by_key_and_do_not_show_it():
    keys = keys_of("one", "two")
    first, second = keys.tenant(b"Bearer one").name, keys.tenant(b"Bearer two").name
    assert first != second
    assert "one" not in first
    assert keys_of("one").tenant(b"Bearer one").name == first


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer on", b"Basic one", b"one", b"Bearer \xff"]
)
def test_everybody_else_is_refused(header):
    with pytest.raises(AuthenticationError):
        keys_of("one", "two").tenant(header)


def test_a_hash_opens_to_its_key_and_not_to_itself():
    keys = keys_of(f"sha256:{digest('secret')}")
    assert keys.tenant(b"Bearer secret").name
    with pytest.raises(AuthenticationError):
        keys.tenant(f"Bearer sha256:{digest('secret')}".encode())


def test_nothing_in_memory_is_a_key():
    keys = keys_of("a-very-secret-key")
    held = [part for blind in keys._tenants for part in (blind, blind.hex().encode())]
    wanted = (b"a-very-secret-key", bytes.fromhex(digest("a-very-secret-key")))
    assert all(one not in part for part in held for one in wanted)


def test_a_file_names_tenants_and_their_limits(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(YAML % (f"sha256:{digest('sk-b')}", digest("sk-b2").upper()))
    keys = KeyRing(("sk-plain",), path).current
    team = keys.tenant(b"Bearer sk-a")
    assert (team.name, team.limits) == ("team-a", Limits(60, 1000, 4))
    assert (team.models, team.priority, team.max_tokens) == (frozenset({"tiny"}), 5, 100)
    assert keys.tenant(b"Bearer sk-b") is keys.tenant(b"Bearer sk-b2")
    assert keys.tenant(b"Bearer sk-plain").priority is None
    assert team.may_use(("tiny", "alias")) and not team.may_use(("other",))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keys.json", '{"keys": [{"name": "a", "key": "sk-a", "max_tokens": 7}]}'),
        ("keys.toml", '[[keys]]\nname = "a"\nkey = "sk-a"\nmax_tokens = 7\n'),
        ("keys.yml", "keys: [{name: a, key: sk-a, max_tokens: 7}]"),
    ],
)
def test_all_three_notations_say_the_same(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    (tenant,) = read_key_file(path).values()
    assert (tenant.name, tenant.max_tokens) == ("a", 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"keys": [{"name": "a"}]}', "keys[0] (a): neither `key` nor `hash`"),
        ('{"keys": [{"name": "a", "hash": "abc"}]}', "64 hexadecimal digits"),
        ('{"keys": [{"name": "a", "key": " "}]}', "a key is empty"),
        ('{"keys": [{"name": "a b", "key": "k"}]}', "$.keys[0].name"),
        ('{"keys": [{"name": "a", "key": "k", "rpm": 3}]}', "unknown field `rpm`"),
        ('{"keys": [{"name": "a", "key": "k", "max_concurrent": 0}]}', "max_concurrent"),
        ('{"keys": [{"name": "a", "key": "k"}, {"name": "a", "key": "l"}]}', "name is taken"),
        ('{"keys": [{"name": "a", "key": "k"}, {"name": "b", "key": "k"}]}', "the same key"),
        ("[]", "keys.json"),
        ("{", "keys.json"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(KeyFileError) as error:
        read_key_file(path)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["missing.json", "keys.txt"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "keys.txt").write_text("x")
    with pytest.raises(KeyFileError, match=name):
        read_key_file(tmp_path / name)


def test_an_empty_file_lets_nobody_in(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')
    with pytest.raises(AuthenticationError):
        KeyRing((), path).current.tenant(None)


def knows(ring: KeyRing, key: str) -> bool:
    try:
        ring.current.tenant(f"Bearer {key}".encode())
    except AuthenticationError:
        return False
    return True


async def test_a_changed_file_counts_without_a_restart_and_a_broken_one_does_not(tmp_path, caplog):
    path = tmp_path / "keys.json"
    path.write_text('{"keys": [{"name": "a", "key": "old"}]}')
    ring = KeyRing((), path)
    watch = asyncio.create_task(ring.keep_current(0.001))
    try:
        fresh = tmp_path / "fresh"
        fresh.write_text('{"keys": [{"name": "a", "key": "new"}]}')
        os.replace(fresh, path)
        await until(lambda: knows(ring, "new"))
        assert not knows(ring, "old")
        path.write_text("{")
        await until(lambda: "stay as they were" in caplog.text)
        assert knows(ring, "new")
        path.unlink()
        await until(lambda: caplog.text.count("stay as they were") == 2)
        assert knows(ring, "new")
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def test_a_reload_that_is_asked_for_does_not_wait_for_a_change(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')
    ring = KeyRing((), path)
    watch = asyncio.create_task(ring.keep_current(3600))
    try:
        await asyncio.sleep(0)
        ring.request_reload()
        await until(lambda: "API keys read" in caplog.text)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
