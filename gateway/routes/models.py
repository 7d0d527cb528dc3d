"""GET /v1/models and /v1/models/{id}: a card for each served name."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.routes.answering import json_response
from gateway.schemas.answers import ModelCard, ModelList
from gateway.state import gateway_of, tenant_of
from gateway.tokens import ModelInfo

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=None)
async def list_models(request: Request) -> Response:
    models = gateway_of(request).models(tenant_of(request))
    cards = [_card(model, name) for model in models for name in model.served_names]
    return json_response(ModelList(data=cards))


@router.get("/v1/models/{model_id:path}", response_model=None)
async def get_model(model_id: str, request: Request) -> Response:
    model = gateway_of(request).model(model_id, tenant_of(request))
    return json_response(_card(model, model_id))


def _card(model: ModelInfo, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        created=model.created_unix_s,
        root=model.root,
        max_model_len=model.max_model_len,
    )
