"""One rank's model with its weights: torch's layers, or on CPUs our own kernels around them.

Decides which of the two, and how weights come in; knows no steps, cache or sampling. Called by the
ModelRunner, once.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.attention.registry import wants_triton
from worker.config import RunnerConfig
from worker.layers.linear import TensorOptions
from worker.models.config import ModelConfig
from worker.models.decoder import Decoder
from worker.models.loader import Progress, WeightSink, load_weights
from worker.models.registry import find_family
from worker.models.spec import ModelSpec
from worker.native.decoder import NativeDecoder
from worker.native.direct_packing import DirectPacking
from worker.native.library import native_library
from worker.native.packing import PackedRows
from worker.native.terms import is_covered
from worker.parallel.group import TPGroup


@dataclass(frozen=True, slots=True)
class RankModel:
    """What a rank's model is made of. Each method is collective."""

    config: RunnerConfig
    model_config: ModelConfig
    spec: ModelSpec
    max_model_len: int
    dtype: torch.dtype
    device: torch.device
    tp: TPGroup

    def load(self, progress: Progress | None) -> Decoder | NativeDecoder:
        """From the checkpoint. Raises: CheckpointError when its weights do not match the model."""
        model, library = self._empty(), self._kernels()
        if library is None:
            self._read_weights(model, progress, None)
            return model
        packing = DirectPacking(library, model, self.tp)
        self._read_weights(model, progress, packing)
        return self._native(model, library, packing.packed())

    def filled(self, fill: Callable[[Decoder], None]) -> Decoder | NativeDecoder:
        """With whatever `fill` writes into the parameters, which are zeros before."""
        model, library = self._empty(), self._kernels()
        fill(model)
        return model if library is None else self._native(model, library, {})

    def _empty(self) -> Decoder:
        is_fused = wants_triton(self.config.attention_backend, self.device)
        options = TensorOptions(self.dtype, self.device, is_fused)
        return Decoder(self.spec, self.max_model_len, self.tp, options).eval()

    def _read_weights(
        self, model: Decoder, progress: Progress | None, sink: WeightSink | None
    ) -> None:
        weights = find_family(self.model_config).build_weight_map(self.spec)
        quantization = self.model_config.quantization
        load_weights(model, self.config.model_path, weights, progress, quantization, sink)

    def _kernels(self) -> ctypes.CDLL | None:
        """The CPU's own, where there are any for this model."""
        if not self.config.wants_native_kernels or self.device.type != "cpu":
            return None
        if not is_covered(self.spec, self.dtype):
            return None
        library = native_library()
        # All ranks or none: they exchange other numbers than ranks on torch do.
        have_all = self.tp.min_int(int(library is not None)) == 1
        return library if have_all else None

    def _native(
        self, model: Decoder, library: ctypes.CDLL, packed: dict[int, PackedRows]
    ) -> NativeDecoder:
        """`packed`: what of the model was packed when it was read."""
        return NativeDecoder(
            model,
            library,
            self.tp,
            torch.get_num_threads(),
            self.max_model_len,
            self.config.block_size,
            packed,
        )
