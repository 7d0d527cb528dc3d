"""LangChain's page on vLLM, as it stands but for model name and base URL, on a real cluster."""

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.prompts.chat import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from tests.live import LiveCluster

pytestmark = pytest.mark.ray

MESSAGES = [
    SystemMessage(content="You are a helpful assistant that translates English to Italian."),
    HumanMessage(
        content="Translate the following sentence from English to Italian: I love programming."
    ),
]


@pytest.fixture(params=["mosaicml/mpt-7b", "shoal-demo"])
def llm(cluster: LiveCluster, request: pytest.FixtureRequest) -> ChatOpenAI:
    return ChatOpenAI(
        model=request.param,
        openai_api_key="EMPTY",
        openai_api_base=cluster.api,
        max_tokens=5,
        temperature=0,
    )


@pytest.fixture
def chain_llm(cluster: LiveCluster) -> ChatOpenAI:
    return ChatOpenAI(
        model="mosaicml/mpt-7b", openai_api_key="EMPTY", openai_api_base=cluster.api, temperature=0
    )


def test_invoke_translates_to_italian(llm: ChatOpenAI) -> None:
    answer = llm.invoke(MESSAGES)
    assert answer.content == "Io amo programmare"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] <= 5


def test_chain_translates_to_german(chain_llm: ChatOpenAI) -> None:
    prompt = ChatPromptTemplate.from_messages(
        [
            (
                "system",
                "You are a helpful assistant that translates "
                "{input_language} to {output_language}.",
            ),
            ("human", "{input}"),
        ]
    )
    chain = prompt | chain_llm
    answer = chain.invoke(
        {"input_language": "English", "output_language": "German", "input": "I love programming."}
    )
    assert answer.content == "Ich liebe Programmieren"


def test_stream_brings_the_answer_in_pieces(llm: ChatOpenAI) -> None:
    pieces = [chunk.content for chunk in llm.stream(MESSAGES)]
    assert "".join(pieces) == "Io amo programmare"
    assert len([p for p in pieces if p]) >= 2


async def test_ainvoke_and_astream(llm: ChatOpenAI) -> None:
    assert (await llm.ainvoke(MESSAGES)).content == "Io amo programmare"
    pieces = [chunk.content async for chunk in llm.astream(MESSAGES)]
    assert "".join(pieces) == "Io amo programmare"


async def test_abatch_answers_all(llm: ChatOpenAI) -> None:
    german = [
        SystemMessage(content="You are a helpful assistant that translates English to German."),
        HumanMessage(content="I love programming."),
    ]
    answers = await llm.abatch([MESSAGES, german] * 8)
    assert [a.content for a in answers[:2]] == ["Io amo programmare", "Ich liebe Programmieren"]
    assert len({a.content for a in answers}) == 2


def test_stream_reports_usage_when_asked(cluster: LiveCluster) -> None:
    llm = ChatOpenAI(
        model="shoal-demo",
        openai_api_key="EMPTY",
        openai_api_base=cluster.api,
        temperature=0,
        stream_usage=True,
    )
    chunks = list(llm.stream(MESSAGES))
    usage = [c.usage_metadata for c in chunks if c.usage_metadata]
    assert len(usage) == 1 and usage[0]["input_tokens"] > 0
