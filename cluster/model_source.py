"""From what the user calls a model to a folder that every rank can load.

MODEL is a folder, a hub id, or nothing: the embedded demo model. Reads no weights; called by
`cluster.serve` before anything is started.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.cli_errors import CommandError
from cluster.options import DEMO_NAME, ServeOptions

# Weights and the text side only; several hubs keep the same weights in other formats beside them.
ALLOW_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
OLDER_WEIGHTS = "pytorch_model*.bin"  # where there are no safetensors
IGNORE_PATTERNS = ("*/*", "consolidated*")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

Download = Callable[[str, ServeOptions], str]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`path` holds config.json and weights; `num_bytes` is the size of the latter."""

    path: str
    names: tuple[str, ...]  # under which clients ask for it; the first is the deployment's
    num_bytes: int
    is_demo: bool = False


def resolve_model(options: ServeOptions, download: Download | None = None) -> ModelSource:
    """Raises: CommandError, saying what was looked for and where."""
    path, name = _locate(options, download or download_snapshot)
    if not (path / "config.json").is_file():
        what = "The embedded demo model" if options.model is None else f"The folder {path}"
        raise CommandError(f"{what} has no config.json: {path} is not a model in Hugging Face form")
    weights = _weights(path)
    if not weights:
        raise CommandError(
            f"{path} has neither *.safetensors nor {OLDER_WEIGHTS}: there are no weights to load"
        )
    return ModelSource(
        path=str(path),
        names=options.served_names or (name,),
        num_bytes=sum(file.stat().st_size for file in weights),
        is_demo=options.model is None,
    )


def _weights(folder: Path) -> list[Path]:
    return list(folder.glob("*.safetensors")) or list(folder.glob(OLDER_WEIGHTS))


def _locate(options: ServeOptions, download: Download) -> tuple[Path, str]:
    if options.model is None:
        from worker.demo import demo_model_path

        return demo_model_path(), DEMO_NAME
    folder = Path(options.model).expanduser()
    if folder.is_dir():
        return folder.resolve(), options.model
    if folder.exists():
        raise CommandError(f"{options.model} is a file; MODEL is a folder or a hub id")
    if _HUB_ID.fullmatch(options.model) is None:
        raise CommandError(f"There is no folder {options.model}, and it is not a hub id either")
    return Path(download(options.model, options)), options.model


def download_snapshot(hub_id: str, options: ServeOptions) -> str:
    """The folder of the hub's snapshot, downloaded where it is not cached yet.

    Raises: CommandError when the hub refuses or cannot be reached.
    """
    import httpx
    from huggingface_hub import constants, errors

    try:
        folder = _snapshot(hub_id, options, ALLOW_PATTERNS)
        if not _weights(Path(folder)):
            folder = _snapshot(hub_id, options, (*ALLOW_PATTERNS, OLDER_WEIGHTS))
        return folder
    except errors.GatedRepoError as e:
        raise CommandError(
            f"{hub_id} is gated: accept its terms on the hub and give --hf-token or HF_TOKEN"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise CommandError(f"{hub_id} has no revision {options.revision!r}") from e
    except errors.RepositoryNotFoundError as e:
        raise CommandError(
            f"There is no folder {hub_id}, and the hub has no model of this name "
            "(a private one needs --hf-token or HF_TOKEN)"
        ) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as e:
        how = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise CommandError(
            f"There is no folder {hub_id}; as a hub id it is not in the local cache, and {how}"
        ) from e
    except (errors.HFValidationError, errors.HfHubHTTPError, httpx.HTTPError, OSError) as e:
        raise CommandError(f"Downloading {hub_id} failed: {e}") from e


def _snapshot(hub_id: str, options: ServeOptions, patterns: tuple[str, ...]) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(
        hub_id,
        revision=options.revision,
        cache_dir=options.download_dir,
        token=options.hf_token,
        allow_patterns=list(patterns),
        ignore_patterns=list(IGNORE_PATTERNS),
    )
