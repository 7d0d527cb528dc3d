"""One model's tokenizer: text to ids, ids to text, and the exact bytes of a single token.

Wraps the `tokenizers` library; knows nothing of chat, sampling or HTTP. TextModel builds it, the
detokenizer and the log-probability formats read from it.
"""

import json
import re
from typing import Any

from tokenizers import Tokenizer

from gateway.errors import InvalidRequestError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_METASPACE = "▁"


class TextTokenizer:
    """Immutable after construction, safe from any thread."""

    def __init__(self, tokenizer_json: bytes) -> None:
        self.backend: Tokenizer = Tokenizer.from_buffer(tokenizer_json)
        # A file may carry training-time truncation or padding; a prompt must survive whole.
        self.backend.no_truncation()
        self.backend.no_padding()
        added = self.backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.num_ids = _num_ids(self.backend)
        self._added = {id_: token.content for id_, token in added.items()}
        self._decoder_kinds = _decoder_kinds(self.backend)
        self._token_bytes: dict[int, bytes] = {}
        self.plain_texts = PlainTexts(self)

    @property
    def added_tokens(self) -> dict[int, str]:
        return self._added

    def hidden_ids(self, shown_ids: frozenset[int]) -> frozenset[int]:
        """The special ones but for these."""
        return self.special_ids - shown_ids if shown_ids else self.special_ids

    def encode(self, text: str, *, add_special_tokens: bool, param: str = "prompt") -> list[int]:
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError):  # lone surrogates: JSON allows them, UTF-8 does not
            raise InvalidRequestError(f"{param} is not valid Unicode text.", param=param) from None
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this token stands for, which may be a part of a character."""
        found = self._token_bytes.get(token_id)
        if found is None:
            found = self._token_bytes[token_id] = self._find_bytes(token_id)
        return found

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def find_plain_text(self, token_id: int) -> str | None:
        if self._decoder_kinds != {"ByteLevel"} or token_id >= self.num_ids:
            return None
        try:
            text = self.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            return None
        return text if text == self.decode([token_id]) else None

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if "ByteLevel" in self._decoder_kinds:
            return b"".join(_bytes_of_char(char) for char in token)
        match = _BYTE_TOKEN.fullmatch(token)
        if match and "ByteFallback" in self._decoder_kinds:
            return bytes([int(match.group(1), 16)])
        if self._decoder_kinds & {"Metaspace", "Replace"}:
            return token.replace(_METASPACE, " ").encode()
        return self.decode([token_id]).encode()


class PlainTexts(dict[int, str | None]):
    """By id: what a token is in a text, whatever stands around it; None where that depends.

    With a byte-level decoder each token is its bytes, so all that are whole characters are plain.
    Other decoders look at neighbours or at the text's start. Filled as ids are asked for.
    """

    def __init__(self, tokenizer: "TextTokenizer") -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> str | None:
        text = self._tokenizer.find_plain_text(token_id)
        self[token_id] = text
        return text


def _num_ids(backend: Tokenizer) -> int:
    """One more than the highest id; ids need not be dense."""
    vocab = backend.get_vocab(with_added_tokens=True)
    return max(vocab.values(), default=-1) + 1


def _decoder_kinds(backend: Tokenizer) -> frozenset[str]:
    if backend.decoder is None:
        return frozenset()
    kinds: set[str] = set()
    open_nodes: list[dict[str, Any]] = [json.loads(backend.decoder.__getstate__())]
    while open_nodes:
        node = open_nodes.pop()
        kinds.add(node["type"])
        open_nodes.extend(node.get("decoders", ()))
    return frozenset(kinds)


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes every byte as a printable character: itself where it is one, else one
    of the code points from 256 on, in byte order (Radford et al. 2019, the GPT-2 encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(hidden)})
    return alphabet


_BYTE_OF_CHAR = _byte_alphabet()


def _bytes_of_char(char: str) -> bytes:
    byte = _BYTE_OF_CHAR.get(char)
    return char.encode() if byte is None else bytes([byte])
