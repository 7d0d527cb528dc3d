"""The text side of a model directory: what a gateway needs to turn text into token ids and back.

Gateways fetch these files from the cluster by digest, so they need no shared disk. Plain bytes;
nothing is parsed here, but a tokenizer that exists in an older form only is converted once, on the
leader, with transformers where that is installed.
"""

import logging
from hashlib import sha256
from pathlib import Path

from worker.errors import CheckpointError

logger = logging.getLogger(__name__)

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)
# Of tokenizers from before tokenizer.json: SentencePiece models, byte-pair and word-piece lists.
OLDER_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def read_model_files(model_path: str) -> dict[str, bytes]:
    """The text files that exist, by name, always with a tokenizer.json.

    Raises: CheckpointError when there is no tokenizer, or one that cannot be converted.
    """
    root = Path(model_path)
    files = {name: (root / name).read_bytes() for name in TEXT_FILES if (root / name).is_file()}
    if "tokenizer.json" not in files:
        files["tokenizer.json"] = _converted_tokenizer(root)
    return files


def _converted_tokenizer(root: Path) -> bytes:
    older = [name for name in OLDER_TOKENIZERS if (root / name).is_file()]
    if not older:
        raise CheckpointError(f"{root} has no tokenizer: neither tokenizer.json nor an older form")
    try:
        # Takes seconds to import, and is needed for this alone.
        from transformers import AutoTokenizer
    except ImportError as error:
        raise CheckpointError(
            f"{root} has no tokenizer.json but {older[0]}; converting it takes "
            "`pip install transformers sentencepiece` where the shards run"
        ) from error
    logger.info("converting %s to tokenizer.json", root / older[0])
    try:
        tokenizer = AutoTokenizer.from_pretrained(root, local_files_only=True)
        return str(tokenizer.backend_tokenizer.to_str()).encode()
    except Exception as error:  # whatever a foreign converter may raise becomes one clear error
        raise CheckpointError(f"{root / older[0]} cannot be converted: {error}") from error


def digest(files: dict[str, bytes]) -> str:
    """Identifies the files by name and content; the same on every machine."""
    state = sha256()
    for name in sorted(files):
        state.update(f"{name}:{len(files[name])}:".encode())
        state.update(files[name])
    return state.hexdigest()
