"""What a checkpoint's headers say of a tensor: where it lies and, if it is packed, how.

Plain data, no torch: the memory plan counts with it, the loader reads by it.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint, in the shape that its values have once they are unpacked."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str = ""  # as safetensors call it; "": a pickled file, whose header does not tell
    packing: "ScaledFloat8 | MXFP4 | None" = None

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def files(self) -> frozenset[Path]:
        """All that its values are made from."""
        match self.packing:
            case ScaledFloat8(numbers, scales):
                return frozenset((numbers.file, scales.file))
            case MXFP4(numbers, exponents):
                return frozenset((numbers.file, exponents.file))
        return frozenset((self.file,))


@dataclass(frozen=True, slots=True)
class ScaledFloat8:
    """Eight-bit floats, each block of which has a scale: value = number * scale.

    Scales: one for all, [rows, 1], or one for each block [divide_up(rows, block[0]), ...].
    """

    numbers: TensorEntry  # [rows, columns]
    scales: TensorEntry
    block: tuple[int, int]  # rows, columns


@dataclass(frozen=True, slots=True)
class MXFP4:
    """Four-bit floats in blocks of 32 that share an exponent (OCP Microscaling Formats 1.0, 2023),
    two to a byte, the lower half first.

    The values' shape is [experts, in, out]: gpt-oss's own is the transposed one.
    """

    numbers: TensorEntry  # [experts, out, in / 32, 16] bytes
    exponents: TensorEntry  # [experts, out, in / 32] bytes, biased by 127
