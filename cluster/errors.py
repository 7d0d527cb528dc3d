"""The control plane's exceptions, as the commands of `shoal` show them.

ClusterError
├── DeploymentConflict   a deployment cannot be added beside those that exist
├── StartFailed          a replica did not come up; says why
└── ResourcesMissing     the Ray cluster cannot hold a replica; says what is missing
"""


class ClusterError(Exception):
    """Base. One message, so that Ray can carry it between processes."""


class DeploymentConflict(ClusterError):
    """Another deployment has the name, or this one exists with other settings."""


class StartFailed(ClusterError):
    """A replica did not come up."""


class ResourcesMissing(StartFailed):
    """No placement group: the Ray cluster has not got the resources, or has given them away."""


def plain_reason(error: BaseException) -> str:
    """What went wrong, without Ray's wrapping and traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and cause is not error:
        return plain_reason(cause)
    lines = str(error).strip().splitlines()
    if type(error).__module__.startswith("ray."):
        return lines[0] if lines else type(error).__name__
    text = "\n".join(lines)
    is_ours = type(error).__module__.partition(".")[0] in ("cluster", "worker")
    return text if is_ours and text else f"{type(error).__name__}: {text}".rstrip(": ")
