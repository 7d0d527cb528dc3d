"""The request a log line belongs to: set once a request, shown in every line of its tasks."""

import logging
from contextvars import ContextVar, Token

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(of_request)s"

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def set_request_id(request_id: str) -> Token[str]:
    """For the running task and those it starts, until `unset_request_id`."""
    return _request_id.set(request_id)


def unset_request_id(token: Token[str]) -> None:
    _request_id.reset(token)


class RequestIdFilter(logging.Filter):
    """Gives each record what LOG_FORMAT ends with. Belongs on the handler, so that the records of
    every library pass it."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = _request_id.get()
        names_it = not request_id or "request_id=" in str(record.msg)
        record.of_request = "" if names_it else f" request_id={request_id}"
        return True


def install(level: str) -> None:
    """Of the root logger, as logging.basicConfig does."""
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, handlers=[handler])
