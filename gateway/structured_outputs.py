"""What an answer must be, from response_format, structured_outputs and vLLM's older guided_*.

One of them at most may ask for something. Pure; gateway/grammar.py joins it with what tools
demand.
"""

from gateway.errors import InvalidRequestError
from gateway.grammar_text import (
    JsonWriting,
    choice_grammar,
    client_grammar,
    json_grammar,
    parsed_schema,
    regex_grammar,
)
from gateway.schemas.common import ResponseFormat, SamplingFields, StructuredOutputs
from gateway.structural_tag import structural_tag_grammar
from gateway.tokens import Grammar

_ANY_OBJECT = {"type": "object"}


def answer_grammar(body: SamplingFields) -> Grammar | None:
    """None: the answer is free. Raises: InvalidRequestError."""
    asked = format_grammar(body.response_format)
    constraint, param = body.constraint
    if constraint is None:
        return asked
    if asked is not None:
        raise InvalidRequestError(f"response_format and {param} cannot both be given.", param=param)
    return _structured_grammar(constraint, param)


def format_grammar(response_format: ResponseFormat | None) -> Grammar | None:
    """Raises: InvalidRequestError."""
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return json_grammar(_ANY_OBJECT, "response_format")
    if response_format.type == "structural_tag":
        return structural_tag_grammar(response_format.structural_tag(), "response_format")
    wanted = response_format.json_schema
    if wanted is None or wanted.schema_ is None:
        raise InvalidRequestError(
            "response_format of type 'json_schema' needs a `json_schema` with a `schema`.",
            param="response_format.json_schema",
        )
    return json_grammar(wanted.schema_, "response_format")


def _structured_grammar(asked: StructuredOutputs, param: str) -> Grammar:
    given = asked.given()
    if len(given) != 1:
        raise InvalidRequestError(
            f"{param} must have exactly one of json, json_object, regex, choice, grammar and "
            f"structural_tag, got {', '.join(given) or 'none'}.",
            param=param,
        )
    writing = _writing(asked, param)
    if asked.json_ is not None:
        return json_grammar(parsed_schema(asked.json_, param), param, writing)
    if asked.regex is not None:
        return regex_grammar(asked.regex, param)
    if asked.choice is not None:
        return choice_grammar(asked.choice, param)
    if asked.grammar is not None:
        return client_grammar(asked.grammar, param)
    if asked.structural_tag is not None:
        return structural_tag_grammar(asked.structural_tag, param)
    return json_grammar(_ANY_OBJECT, param, writing)


def _writing(asked: StructuredOutputs, param: str) -> JsonWriting:
    writing = JsonWriting(
        is_compact=bool(asked.disable_any_whitespace),
        whitespace_pattern=asked.whitespace_pattern,
        closes_objects=bool(asked.disable_additional_properties),
    )
    if writing != JsonWriting() and asked.json_ is None and not asked.json_object:
        raise InvalidRequestError(
            "whitespace_pattern, disable_any_whitespace and disable_additional_properties are "
            "allowed with json and json_object only.",
            param=param,
        )
    return writing
