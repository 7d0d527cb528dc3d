"""What the parity tests measured, a line a model: the table that README points to.

`pytest tests/worker/models --family-table FILE` writes it; the rows are collected as tests run.
"""

from dataclasses import dataclass, field

HEAD = """# Model families

Each line is a row of the parity tests: a tiny random model, true to its family's form, against
`transformers` in fp32. The difference is the greatest of any logit over a whole prompt, chunks, a
cached prefix, batched decodes and mixtures of them; 64 greedy tokens were identical at each number
of tensor-parallel ranks listed. All of it holds with the native CPU kernels and on torch alone;
"native" says how much of a model the kernels compute. Written by `make family-table`.

| architecture | form | max. logit difference | ranks | native |
|---|---|---|---|---|
"""


@dataclass
class FamilyTable:
    rows: list[tuple[str, str, float, tuple[int, ...], str]] = field(default_factory=list)

    def add(
        self, architecture: str, form: str, difference: float, ranks: tuple[int, ...], native: str
    ) -> None:
        self.rows.append((architecture, form, difference, ranks, native))

    def markdown(self) -> str:
        lines = [
            f"| {architecture} | {form} | {difference:.1e} | {', '.join(map(str, ranks))} "
            f"| {native} |"
            for architecture, form, difference, ranks, native in sorted(self.rows)
        ]
        return HEAD + "\n".join(lines) + "\n"


TABLE = FamilyTable()
