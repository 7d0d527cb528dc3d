"""The text side of a model directory: what a gateway needs to turn text into token ids and back.

Gateways fetch these files from the cluster by digest, so they need no shared disk. Plain bytes;
nothing is parsed here.
"""

from hashlib import sha256
from pathlib import Path

from worker.errors import CheckpointError

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)


def read_model_files(model_path: str) -> dict[str, bytes]:
    """The text files that exist, by name.

    Raises: CheckpointError when there is no tokenizer.json.
    """
    root = Path(model_path)
    files = {name: (root / name).read_bytes() for name in TEXT_FILES if (root / name).is_file()}
    if "tokenizer.json" not in files:
        raise CheckpointError(
            f"{model_path} has no tokenizer.json; save one beside the weights with "
            "transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return files


def digest(files: dict[str, bytes]) -> str:
    """Identifies the files by name and content; the same on every machine."""
    state = sha256()
    for name in sorted(files):
        state.update(f"{name}:{len(files[name])}:".encode())
        state.update(files[name])
    return state.hexdigest()
