"""What the routes share: settings, the cluster's view and router, texts, metrics; and who asks.

`create_app` builds it once and puts it on the application; the middleware writes a request's facts
and its account into its scope, routes read all of them here.
"""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request
from starlette.types import Scope

from gateway.account import Account
from gateway.config import GatewayConfig
from gateway.drain import Drain
from gateway.errors import InvalidRequestError, ModelNotFoundError, UnavailableError
from gateway.grammar_checker import GrammarChecker
from gateway.metrics import GatewayMetrics
from gateway.request_facts import RequestFacts
from gateway.tenants import Tenant
from gateway.text.model_text import TextModels
from gateway.tokens import ClusterView, ModelInfo, TokenRouter

_FACTS = "shoal.request"
_ACCOUNT = "shoal.account"


@dataclass(frozen=True, slots=True)
class GatewayState:
    """Shared by all requests of one event loop."""

    config: GatewayConfig
    router: TokenRouter
    view: ClusterView
    texts: TextModels
    grammars: GrammarChecker
    metrics: GatewayMetrics
    drain: Drain

    def models(self, tenant: Tenant) -> list[ModelInfo]:
        """Those it may use."""
        return [model for model in self.view.models() if tenant.may_use(model.served_names)]

    def model(self, name: str | None, tenant: Tenant) -> ModelInfo:
        """The named model; without a name the only one there is.

        Raises: ModelNotFoundError, InvalidRequestError, UnavailableError.
        """
        if name:
            model = self.view.model(name)
            if model is None or not tenant.may_use(model.served_names):
                raise ModelNotFoundError(name[:256])
            return model
        models = self.models(tenant)
        if len(models) > 1:
            raise InvalidRequestError("model is required: several are served.", param="model")
        if not models:
            raise UnavailableError("No model is deployed yet.")
        return models[0]


def gateway_of(request: Request) -> GatewayState:
    return cast(GatewayState, request.app.state.gateway)


def facts_of(request: Request) -> RequestFacts:
    return facts_in(request.scope)


def account_of(request: Request) -> Account:
    return cast(Account, request.scope[_ACCOUNT])


def tenant_of(request: Request) -> Tenant:
    return account_of(request).tenant


def facts_in(scope: Scope) -> RequestFacts:
    return cast(RequestFacts, scope[_FACTS])


def set_facts(scope: Scope, facts: RequestFacts) -> None:
    scope[_FACTS] = facts


def account_in(scope: Scope) -> Account | None:
    """None: the request came no further than the layers before the tenants'."""
    return cast("Account | None", scope.get(_ACCOUNT))


def set_account(scope: Scope, account: Account) -> None:
    scope[_ACCOUNT] = account
