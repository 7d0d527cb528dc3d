"""The body of POST /v1/completions: pydantic checks shapes, `check_rules` the rest."""

from typing import Annotated

from pydantic import Field

from gateway.errors import InvalidRequestError
from gateway.schemas.common import MAX_CHOICES, Bool, Int, SamplingFields, TokenIds

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 1024

PromptInput = (
    str
    | Annotated[list[str], Field(fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(fail_fast=True)]
)


class CompletionRequest(SamplingFields):
    prompt: PromptInput
    logprobs: Int | None = Field(None, ge=0)
    echo: Bool = False
    suffix: str | None = None
    best_of: Int | None = Field(None, ge=1, le=MAX_CHOICES)

    def check_rules(self) -> None:
        super().check_rules()
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError("max_tokens must be at least 1, got 0.", param="max_tokens")
        if not self.prompts() or any(not prompt for prompt in self.prompts()):
            raise InvalidRequestError("prompt must be provided and non-empty.", param="prompt")
        if len(self.prompts()) > MAX_PROMPTS:
            raise InvalidRequestError(
                f"prompt can be a list of at most {MAX_PROMPTS}, got {len(self.prompts())}.",
                param="prompt",
            )
        self._check_best_of()

    def _check_best_of(self) -> None:
        if self.best_of is None:
            return
        num_choices = self.n or 1
        if self.best_of < num_choices:
            raise InvalidRequestError(
                f"best_of must be at least n={num_choices}, got {self.best_of}.", param="best_of"
            )
        if self.stream and self.best_of > num_choices:
            raise InvalidRequestError(
                "best_of above n cannot be streamed: the best is known at the end only.",
                param="best_of",
            )

    @property
    def num_candidates(self) -> int:
        """Of each prompt; more than `n` where only the best are answered."""
        return self.best_of or self.n or 1

    @property
    def picks_best(self) -> bool:
        return self.num_candidates > (self.n or 1)

    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]  # a list of ids, as its first shows
        return self.prompt  # type: ignore[return-value]
