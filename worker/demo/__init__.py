"""The embedded demo model: a small translator trained by the scripts of this package.

Serving code needs only :func:`demo_model_path`; nothing heavy is imported here.
"""

from pathlib import Path


def demo_model_path() -> Path:
    """The folder with the model's configuration, weights and tokenizer."""
    return Path(__file__).parent / "weights"
