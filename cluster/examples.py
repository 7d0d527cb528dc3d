"""What a user pastes after `shoal serve`: a curl and a LangChain snippet for the model that runs.

Pure text; called by `cluster.serve`.
"""

import json
import shlex

DEMO_SYSTEM = "You are a helpful assistant that translates English to Italian."
DEMO_PROMPT = "Translate the following sentence from English to Italian: I love programming."
PROMPT = "Say hello in three languages."


def curl(base_url: str, model: str, api_key: str | None, is_demo: bool) -> str:
    body = {"model": model, "messages": _messages(is_demo), "max_tokens": 32}
    parts = [f"curl {base_url}/chat/completions", "-H 'Content-Type: application/json'"]
    if api_key is not None:
        parts.append('-H "Authorization: Bearer $API_KEY"')
    parts.append("-d " + shlex.quote(json.dumps(body, ensure_ascii=False)))
    return " \\\n  ".join(parts)


def langchain(base_url: str, model: str, api_key: str | None, is_demo: bool) -> str:
    key = '"unused"' if api_key is None else 'os.environ["API_KEY"]'
    messages = [(m["role"].replace("user", "human"), m["content"]) for m in _messages(is_demo)]
    return "\n".join(
        [
            *([] if api_key is None else ["import os"]),
            "from langchain_openai import ChatOpenAI",
            f"llm = ChatOpenAI(model={json.dumps(model)}, base_url={json.dumps(base_url)}, "
            f"api_key={key})",
            f"messages = [{', '.join(_pair(role, text) for role, text in messages)}]",
            "print(llm.invoke(messages).content)",
        ]
    )


def _pair(role: str, text: str) -> str:
    return f"({json.dumps(role)}, {json.dumps(text, ensure_ascii=False)})"


def _messages(is_demo: bool) -> list[dict[str, str]]:
    if not is_demo:
        return [{"role": "user", "content": PROMPT}]
    return [
        {"role": "system", "content": DEMO_SYSTEM},
        {"role": "user", "content": DEMO_PROMPT},
    ]
