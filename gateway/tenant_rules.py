"""What a tenant may ask of one answer, and what that answer may come to. Pure functions; the
answering routes call them."""

from dataclasses import replace

from gateway.errors import InvalidRequestError
from gateway.generation import GenerationPlan
from gateway.schemas.common import SamplingFields
from gateway.tenants import Tenant
from gateway.tokens import TokenRequest

# Of an answer whose length the client leaves open: the rest of a large window would lock everybody
# out whose rate is smaller. What is really used is settled at the end.
UNSTATED_OUTPUT_TOKENS = 1024


def check_allowed(body: SamplingFields, tenant: Tenant) -> None:
    """Raises: InvalidRequestError."""
    given = body.max_output_tokens
    if tenant.max_tokens is not None and given is not None and given > tenant.max_tokens:
        name = "max_tokens" if body.max_tokens == given else "max_completion_tokens"
        raise InvalidRequestError(
            f"{name}={given} is more than your API key allows: {tenant.max_tokens}.", param=name
        )
    asked = body.priority
    if tenant.priority is not None and asked is not None and asked < tenant.priority:
        raise InvalidRequestError(
            f"priority={asked} is more urgent than your API key allows: {tenant.priority}.",
            param="priority",
        )


def priority_of(body: SamplingFields, tenant: Tenant) -> int:
    return body.priority if body.priority is not None else tenant.priority or 0


def keep_within(requests: list[TokenRequest], tenant: Tenant) -> None:
    """Shortens, in place, answers whose length the client left open."""
    limit = tenant.max_tokens
    if limit is None:
        return
    for place, request in enumerate(requests):
        sampling = request.sampling
        if sampling.max_tokens > limit:
            min_tokens = min(limit, sampling.min_tokens)
            shorter = replace(sampling, max_tokens=limit, min_tokens=min_tokens)
            requests[place] = replace(request, sampling=shorter)


def reserved_tokens(plan: GenerationPlan, body: SamplingFields) -> int:
    """The prompts, each once, and the most that may be generated."""
    prompts = plan.requests[:: plan.choices_per_prompt]
    num_prompt = sum(len(request.prompt_token_ids) for request in prompts)
    most = [request.sampling.max_tokens for request in plan.requests]
    if body.max_output_tokens is None:
        most = [min(one, UNSTATED_OUTPUT_TOKENS) for one in most]
    return num_prompt + sum(most)
