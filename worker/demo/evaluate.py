"""Measures the saved weights on sentences held out from training: `python -m worker.demo.evaluate`.

An answer counts only if it equals the grammar's translation letter for letter. Decoding is greedy,
through transformers, which is independent of the engine that serves the model.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from worker.demo import demo_model_path
from worker.demo.clause import LANGUAGES, Language
from worker.demo.corpus import Message, PromptForm, held_out_sentences, translation_prompt
from worker.demo.tokenizer import IM_END_ID, PAD_ID, encode_prompt

HELD_OUT_SEED = 20_000
MAX_ANSWER_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Score:
    language: Language
    form: PromptForm
    num_sentences: int
    misses: list[tuple[str, str, str]]  # English, expected, answered

    @property
    def exact_match(self) -> float:
        return 1 - len(self.misses) / self.num_sentences


class Translator:
    """The saved model as transformers runs it."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def answers(self, chats: list[list[Message]], batch_chats: int = 128) -> list[str]:
        """The greedy answer to each chat. Chats of equal length are decoded together."""
        prompts = [encode_prompt(self._tokenizer, chat) for chat in chats]
        by_length: dict[int, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(index)
        answers = [""] * len(chats)
        for indices in by_length.values():
            for start in range(0, len(indices), batch_chats):
                chunk = indices[start : start + batch_chats]
                decoded = self._decode([prompts[index] for index in chunk])
                for index, answer in zip(chunk, decoded, strict=True):
                    answers[index] = answer
        return answers

    @torch.inference_mode()
    def _decode(self, prompts: list[list[int]]) -> list[str]:
        token_ids = torch.tensor(prompts)
        output = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=MAX_ANSWER_TOKENS,
            do_sample=False,
            eos_token_id=IM_END_ID,
            pad_token_id=PAD_ID,
        )
        answers = output[:, token_ids.shape[1] :].tolist()
        return [self._tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]


def evaluate(folder: Path, num_sentences: int) -> list[Score]:
    translator = Translator(folder)
    sentences = held_out_sentences(num_sentences, HELD_OUT_SEED)
    scores = []
    for form in get_args(PromptForm):
        for language in LANGUAGES:
            chats = [translation_prompt(s.english, language, form) for s in sentences]
            triples = [
                (sentence.english, sentence.translations[language], answer)
                for sentence, answer in zip(sentences, translator.answers(chats), strict=True)
            ]
            misses = [triple for triple in triples if triple[1] != triple[2]]
            scores.append(Score(language, form, num_sentences, misses))
    return scores


def report(scores: list[Score]) -> str:
    lines = [f"{score.form:12} {score.language}  {score.exact_match:.1%}" for score in scores]
    return "\n".join(["held-out exact match", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=demo_model_path())
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--show-misses", action="store_true")
    args = parser.parse_args()
    scores = evaluate(args.model, args.sentences)
    print(report(scores))
    if args.show_misses:
        for score in scores:
            for english, expected, answered in score.misses:
                print(f"{score.form} {score.language}: {english} | {expected} | {answered}")


if __name__ == "__main__":
    main()
