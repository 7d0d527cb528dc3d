"""An error of ours as the HTTP answer that it is."""

import json

from starlette.responses import Response

from gateway.errors import APIError, RateLimitError


def error_response(error: APIError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    elif isinstance(error, RateLimitError):
        headers["x-should-retry"] = "false"  # OpenAI's clients would try any 429 again
    # ASCII: a message may quote input that is no valid UTF-8.
    body = json.dumps(error.body()).encode("ascii")
    return Response(body, error.status, headers, media_type="application/json")
