"""What the routes share: settings, the cluster's view and router, texts, metrics; and who asks.

`create_app` builds it once and puts it on the application; the middleware writes a request's facts
into its scope, routes read both here.
"""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request
from starlette.types import Scope

from gateway.config import GatewayConfig
from gateway.drain import Drain
from gateway.errors import InvalidRequestError, ModelNotFoundError, UnavailableError
from gateway.metrics import GatewayMetrics
from gateway.text.model_text import TextModels
from gateway.tokens import ClusterView, ModelInfo, TokenRouter

_FACTS = "shoal.request"


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """Of one HTTP request, known before any route runs."""

    request_id: str  # the client's where it sent a usable one
    is_client_id: bool
    arrival_s: float  # of the clock that the metrics use


@dataclass(frozen=True, slots=True)
class GatewayState:
    """Shared by all requests of one event loop."""

    config: GatewayConfig
    router: TokenRouter
    view: ClusterView
    texts: TextModels
    metrics: GatewayMetrics
    drain: Drain

    def model(self, name: str | None) -> ModelInfo:
        """The named model; without a name the only one there is.

        Raises: ModelNotFoundError, InvalidRequestError, UnavailableError.
        """
        if name:
            model = self.view.model(name)
            if model is None:
                raise ModelNotFoundError(name[:256])
            return model
        models = self.view.models()
        if len(models) > 1:
            raise InvalidRequestError("model is required: several are served.", param="model")
        if not models:
            raise UnavailableError("No model is deployed yet.")
        return models[0]


def gateway_of(request: Request) -> GatewayState:
    return cast(GatewayState, request.app.state.gateway)


def facts_of(request: Request) -> RequestFacts:
    return cast(RequestFacts, request.scope[_FACTS])


def tenant_of(request: Request) -> str:
    return cast(str, request.scope.get("shoal.tenant", ""))


def set_facts(scope: Scope, facts: RequestFacts) -> None:
    scope[_FACTS] = facts


def set_tenant(scope: Scope, tenant: str) -> None:
    scope["shoal.tenant"] = tenant
