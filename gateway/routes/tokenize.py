"""POST /tokenize and /detokenize, also under /v1: what the model's tokenizer makes of a text."""

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from gateway.routes.answering import body_bytes, json_response, text_of
from gateway.sampling import check_prompt_ids
from gateway.schemas.answers import Detokenized, Tokenized
from gateway.schemas.tokens import DetokenizeRequest, TokenizeRequest
from gateway.state import gateway_of, tenant_of
from gateway.text.model_text import TextModel

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", response_model=None)
@router.post("/v1/tokenize", response_model=None)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    gateway = gateway_of(request)
    body.check_rules()
    model = gateway.model(body.model, tenant_of(request))
    text = await text_of(request, model)
    name = body.model or model.served_names[0]
    ids = await gateway.texts.run(body_bytes(request), lambda: _encode(body, text, name))
    strings = None
    if body.return_token_strs:
        strings = [text.tokenizer.backend.id_to_token(id_) or "" for id_ in ids]
    return json_response(
        Tokenized(
            count=len(ids),
            max_model_len=model.max_model_len,
            tokens=ids,
            token_strs=UNSET if strings is None else strings,
        )
    )


@router.post("/detokenize", response_model=None)
@router.post("/v1/detokenize", response_model=None)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    gateway = gateway_of(request)
    model = gateway.model(body.model, tenant_of(request))
    check_prompt_ids(body.tokens, model, "tokens")
    tokenizer = (await text_of(request, model)).tokenizer
    skips = body.skip_special_tokens
    text = await gateway.texts.run(
        body_bytes(request), lambda: tokenizer.decode(body.tokens, skip_special_tokens=skips)
    )
    return json_response(Detokenized(text))


def _encode(body: TokenizeRequest, text: TextModel, model_name: str) -> list[int]:
    if body.prompt is not None:
        adds = body.add_special_tokens is not False
        return text.tokenizer.encode(body.prompt, add_special_tokens=adds)
    messages = body.template_messages(model_name)
    return text.encode_chat(messages, body.chat_options(), body.add_special_tokens)
