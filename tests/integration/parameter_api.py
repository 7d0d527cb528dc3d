"""A small client for tests of single parameters: short greedy requests, and what can be read off
their answers. Plain HTTP, so that nothing is between a test and the wire.
"""

import json
import math
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

from tests.live import LiveCluster

TRANSLATE = [
    {
        "role": "system",
        "content": "You are a helpful assistant that translates English to Italian.",
    },
    {"role": "user", "content": "I love programming."},
]
NUM_DRAWS = 128


class Api:
    """Both endpoints with short bodies. A status other than the expected one fails the test."""

    def __init__(self, cluster: LiveCluster) -> None:
        self.url = cluster.url

    def post(self, path: str, body: dict[str, Any], status: int = 200) -> Any:
        return json.loads(self.raw(path, body, status))

    def raw(self, path: str, body: dict[str, Any], status: int = 200) -> bytes:
        body = {"model": "shoal-demo", **body}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            found, data = error.code, error.read()
        assert found == status, data
        return bytes(data)

    def text(self, prompt: Any = "I love", status: int = 200, **fields: Any) -> Any:
        greedy = {"prompt": prompt, "temperature": 0, "max_tokens": 6, "return_token_ids": True}
        return self.post("/v1/completions", {**greedy, **fields}, status)

    def texts(self, prompt: Any = "I love", **fields: Any) -> list[str]:
        return [choice["text"] for choice in self.text(prompt, **fields)["choices"]]

    def ids(self, prompt: Any = "I love", **fields: Any) -> list[int]:
        ids: list[int] = self.text(prompt, **fields)["choices"][0]["token_ids"]
        return ids

    def chat(self, status: int = 200, **fields: Any) -> Any:
        greedy = {"messages": TRANSLATE, "temperature": 0, "max_tokens": 16}
        return self.post("/v1/chat/completions", {**greedy, **fields}, status)

    def chunks(self, path: str = "/v1/chat/completions", **fields: Any) -> list[Any]:
        body = {"temperature": 0, "max_tokens": 16, "stream": True, **fields}
        frames = self.raw(path, body).decode().split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]

    def encode(self, text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        tokens: list[int] = self.post("/tokenize", body)["tokens"]
        return tokens

    def scores(self, prompts: list[list[int]]) -> list[float]:
        """The log-probability of each prompt's last token after those before it."""
        choices = self.text(prompts, max_tokens=1, prompt_logprobs=0)["choices"]
        return [
            choice["prompt_logprobs"][-1][str(prompt[-1])]["logprob"]
            for choice, prompt in zip(choices, prompts, strict=True)
        ]

    def draws(self, prompt: Any, **fields: Any) -> Counter[int]:
        """What the first token is, of many samples."""
        sampled = {"temperature": 1, "seed": 11, "n": NUM_DRAWS, "max_tokens": 1, **fields}
        return Counter(one["token_ids"][0] for one in self.text(prompt, **sampled)["choices"])

    def chances(self, prompt: Any) -> dict[int, float]:
        """The likeliest tokens after a prompt, in falling order, as an untouched sampler sees them;
        without those whose name is another token's too, or only a part of a character."""
        (choice,) = self.text(prompt, max_tokens=1, logprobs=20)["choices"]
        (named,) = choice["logprobs"]["top_logprobs"]
        found = {}
        for name, logprob in named.items():
            ids = self.encode(name)
            if len(ids) == 1:
                found[ids[0]] = math.exp(logprob)
        return dict(sorted(found.items(), key=lambda item: -item[1]))
