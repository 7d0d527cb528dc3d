"""The gateway's exceptions: each is an HTTP answer in the OpenAI error shape.

APIError (status, type, code, param)
├── InvalidRequestError   400  invalid_request_error; `param` names the field
├── ContextLengthError    400  code context_length_exceeded
├── AuthenticationError   401  code invalid_api_key
├── NotFoundError         404  code model_not_found for models
├── MethodNotAllowedError 405
├── RequestTimeoutError   408  the request did not come in time
├── BodyTooLargeError     413
├── HeadersTooLargeError  431
├── RateLimitError        429  code rate_limit_exceeded, with Retry-After
├── OverloadedError       503  the cluster is full, with Retry-After
├── UnavailableError      503  no replica can serve now
├── DeadlineError         504  the request's deadline passed
└── EngineError           500  the cluster failed the request
"""


class APIError(Exception):
    """Base: an answer to the client. `code` and `param` are strings or None, never numbers."""

    status = 500
    type = "server_error"
    default_code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, dict[str, str | None]]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequestError(APIError):
    status = 400
    type = "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """Worded so that LangChain ("Input tokens exceed the configured limit") and LiteLLM ("maximum
    context length") both recognise it."""

    default_code = "context_length_exceeded"

    def __init__(self, num_tokens: int, limit: int, param: str = "messages") -> None:
        super().__init__(
            f"Input tokens exceed the configured limit of {limit} tokens. Your {param} resulted in "
            f"{num_tokens} tokens. This model's maximum context length is {limit} tokens. "
            f"Please reduce the length of the {param}.",
            param=param,
        )


class AuthenticationError(APIError):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class NotFoundError(APIError):
    status = 404
    type = "invalid_request_error"


class ModelNotFoundError(NotFoundError):
    default_code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model}` does not exist or you do not have access to it.", param="model"
        )


class MethodNotAllowedError(APIError):
    status = 405
    type = "invalid_request_error"


class RequestTimeoutError(APIError):
    status = 408
    type = "invalid_request_error"


class BodyTooLargeError(APIError):
    status = 413
    type = "invalid_request_error"


class HeadersTooLargeError(APIError):
    status = 431
    type = "invalid_request_error"


class RateLimitError(APIError):
    """A tenant has used what its key allows. Without `retry_after_s` no waiting helps."""

    status = 429
    default_code = "rate_limit_exceeded"

    def __init__(self, limit: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.type = limit  # as OpenAI: which of the limits it was


class OverloadedError(APIError):
    """The cluster refuses for now; clients should retry after `retry_after_s`."""

    status = 503
    type = "server_error"
    default_code = "overloaded"


class UnavailableError(APIError):
    """No replica of the model can serve now."""

    status = 503
    type = "server_error"
    default_code = "unavailable"


class DeadlineError(APIError):
    status = 504
    type = "server_error"
    default_code = "timeout"


class EngineError(APIError):
    status = 500
    type = "server_error"
