"""How a model that fills in the middle is asked: its marks around the texts on either side.

Fill-in-the-middle training (Bavarian et al. 2022). The marks are found in the vocabulary, so no
model needs a flag. TextModel looks for them; planning writes the prompt of a `suffix` request.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Infill:
    """Marks in the order in which a prompt has them: before the prefix, between, at its end."""

    before_prefix: str
    before_suffix: str
    at_end: str

    def prompt(self, prefix: str, suffix: str) -> str:
        return f"{self.before_prefix}{prefix}{self.before_suffix}{suffix}{self.at_end}"

    @property
    def marks(self) -> frozenset[str]:
        return frozenset((self.before_prefix, self.before_suffix, self.at_end))


_FORMATS = (
    Infill("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coder, CodeGemma
    Infill("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite code
    Infill("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Infill("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek coder
    Infill("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)


def find_infill(added_tokens: Iterable[str]) -> Infill | None:
    """The format whose marks are all tokens of the vocabulary; None: the model has none."""
    known = frozenset(added_tokens)
    return next((one for one in _FORMATS if one.marks <= known), None)
