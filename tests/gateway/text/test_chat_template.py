import datetime

import pytest

from gateway.errors import InvalidRequestError
from gateway.text.chat_template import DEFAULT_TEMPLATE, ChatOptions, ChatTemplate
from gateway.text.jinja import iterates_over_content, make_environment
from tests.gateway.small_tokenizer import CHAT_TEMPLATE

HI = [{"role": "user", "content": "hi"}]


def render(source, messages, **options):
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, ChatOptions(**options))


def test_template_gets_messages_special_tokens_and_the_prompt_flag():
    source = "{{ bos_token }}" + CHAT_TEMPLATE
    assert render(source, HI) == "<s><|user|>hi\n<|assistant|>"
    assert render(source, HI, add_generation_prompt=False) == "<s><|user|>hi\n"


def test_default_template_is_a_transcript():
    messages = [
        {"role": "system", "content": "Translate."},
        {"role": "user", "content": " I love programming. "},
    ]
    assert render(DEFAULT_TEMPLATE, messages) == (
        "System: Translate.\nUser: I love programming.\nAssistant:"
    )


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, DEFAULT_TEMPLATE])
def test_missing_content_is_empty_text(source):
    messages = [*HI, {"role": "assistant", "content": None}]
    assert "None" not in render(source, messages)


def test_text_parts_are_joined_for_templates_of_strings():
    messages = [{"role": "user", "content": ["one", "two"]}]
    assert "<|user|>one\ntwo\n" in render(CHAT_TEMPLATE, messages)


def test_templates_that_loop_over_parts_get_parts():
    source = (
        "{% for m in messages %}{% for p in m['content'] %}[{{ p['text'] }}]{% endfor %}"
        "{% endfor %}"
    )
    assert iterates_over_content(source)
    assert render(source, HI) == "[hi]"
    assert render(source, [{"role": "user", "content": ["a", "b"]}]) == "[a][b]"


def test_templates_that_ask_for_strings_get_strings():
    source = (
        "{% for m in messages %}{% set c = m.content %}{% if c is string %}{{ c }}{% else %}"
        "{% for p in c %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert not iterates_over_content(source)
    assert render(source, HI) == "hi"


def test_developer_is_system_for_templates_that_do_not_know_it():
    messages = [{"role": "developer", "content": "x"}]
    assert "<|system|>x" in render(CHAT_TEMPLATE, messages)
    knows = "{% if messages[0].role == 'developer' %}knows{% endif %}"
    assert render(knows, messages) == "knows"


def test_final_message_is_continued_without_its_end():
    messages = [*HI, {"role": "assistant", "content": "Io amo "}]
    text = render(CHAT_TEMPLATE, messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "<|user|>hi\n<|assistant|>Io amo "


def test_a_template_without_the_final_message_cannot_continue_it():
    with pytest.raises(InvalidRequestError) as caught:
        render("x", HI, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].role.name }}",
        "{{ 1 / 0 }}",
        "{{ messages | sum }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_what_a_template_refuses_names_the_messages(source):
    with pytest.raises(InvalidRequestError) as caught:
        render(source, HI)
    assert caught.value.param == "messages"


def test_template_exception_text_reaches_the_client():
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", HI)


def test_tojson_keeps_unicode_and_html():
    assert render("{{ messages | tojson }}", [{"role": "user", "content": "è<b>"}]) == (
        '[{"role": "user", "content": "è<b>"}]'
    )


def test_loop_controls_and_generation_tag_are_understood():
    source = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% break %}{% endfor %}"
    )
    assert render(source, HI * 2) == "hi"


def test_today_can_be_written():
    environment = make_environment(lambda: datetime.datetime(2026, 5, 4))
    assert environment.from_string("{{ strftime_now('%d %b %Y') }}").render() == "04 May 2026"


def test_tools_and_variables_reach_the_template():
    source = "{{ tools[0].function.name }} {{ enable_thinking }}"
    tools = [{"type": "function", "function": {"name": "add"}}]
    text = render(source, HI, tools=tools, template_kwargs={"enable_thinking": False})
    assert text == "add False"


def test_reserved_variables_are_refused():
    with pytest.raises(InvalidRequestError) as caught:
        render("", HI, template_kwargs={"messages": []})
    assert caught.value.param == "chat_template_kwargs"


def test_a_historys_thoughts_have_the_name_that_the_template_knows():
    source = (
        "{% for m in messages %}{% if m.thinking %}[{{ m.thinking }}]{% endif %}{{ m.content }}"
        "{% endfor %}"
    )
    thought = {"role": "assistant", "content": "Yes", "reasoning": "Hm"}
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    template = ChatTemplate(source, {})
    assert template.render([thought], ChatOptions()) == "[Hm]Yes"
    # gpt-oss takes text before a call for a thought, and refuses two.
    assert template.render([{**thought, "tool_calls": [call]}], ChatOptions()) == "Yes"
    silent = {**thought, "content": "", "tool_calls": [call]}
    assert template.render([silent], ChatOptions()) == "[Hm]"
