"""A sampler whose grammars are followed by a real mask process, over a small tokenizer."""

from pathlib import Path

import torch
from llguidance import LLTokenizer

from tests.gateway.small_tokenizer import EOS_ID, byte_level_json
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence
from worker.runner.grammar import GrammarMasks, GrammarTimeouts
from worker.runner.mask_client import MaskClient
from worker.runner.sampled import Sampled
from worker.runner.sampler import Sampler

VOCAB_SIZE = 400  # more rows than the tokenizer has ids
NUM_ROWS = 8
TOKENIZER = LLTokenizer(byte_level_json().decode(), n_vocab=VOCAB_SIZE, eos_token=EOS_ID)
PATIENT = GrammarTimeouts(step=10.0, first=10.0, alone=10.0)


def write_tokenizer(folder: Path, text: bytes | None = None) -> str:
    (folder / "tokenizer.json").write_bytes(text or byte_level_json())
    return str(folder)


def make_client(folder: str, vocab_size: int = VOCAB_SIZE) -> MaskClient:
    return MaskClient(folder, vocab_size, [EOS_ID], NUM_ROWS)


def make_sampler(
    client: MaskClient,
    *rows: tuple[SamplingParams, list[int]],
    timeouts: GrammarTimeouts = PATIENT,
    vocab_size: int = VOCAB_SIZE,
) -> Sampler:
    masks = GrammarMasks(client, [EOS_ID], timeouts)
    sampler = Sampler(vocab_size, len(rows), torch.device("cpu"), masks)
    for slot, (row, output) in enumerate(rows):
        sampler.admit(AdmittedSequence(slot, [5, 6], output, row))
    return sampler


def per_sequence(sampled: Sampled) -> list[list[int]]:
    """The tokens of each."""
    counts = sampled.num_tokens or [1] * len(sampled.token_ids)
    ids = iter(sampled.token_ids)
    return [[next(ids) for _ in range(count)] for count in counts]


def logits_at(position: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + position)
    return torch.randn(rows, VOCAB_SIZE, generator=generator) * 3


def text_of(ids: list[int]) -> str:
    return TOKENIZER.decode_bytes(ids).decode()
