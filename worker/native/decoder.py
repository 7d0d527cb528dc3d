"""A decoder whose layers run in C++: what `models/decoder.py` computes, with packed weights.

One rank computes all layers of a step in one call. With several ranks, or where a layer's attention
or MLP is not written natively, the parts run one by one, and between them the ranks add up or the
torch module computes. The residual stream is fp32 throughout. Built and called by the model runner,
on its thread; knows nothing of plans or sampling.
"""

import ctypes
from functools import partial

import torch
from torch import Tensor, nn

from worker.attention.base import ForwardContext, LayerKVCache
from worker.layers.rotary import Rotation
from worker.models.decoder import Decoder, ParallelLayer, SumNormLayer
from worker.native.attention import NativeAttention
from worker.native.coding import coded
from worker.native.library import Team, destroy_with
from worker.native.packing import PackedRows, Packer, padded
from worker.native.structs import GroupStruct, LayerCacheStruct, StepStruct
from worker.native.terms import (
    AnyLayer,
    TermsBuilder,
    has_native_attention,
    has_native_mlp,
    layers_of,
)
from worker.parallel.group import TPGroup

_MOST_CHOICES = 1 << 24  # LargestColumns::kMostColumns


class NativeDecoder:
    """The interface of `Decoder`. Takes its matrices out of the given one, which is of no further
    use to others. Invariant: `logits` follows the `forward` whose rows it is given.
    """

    def __init__(
        self,
        decoder: Decoder,
        library: ctypes.CDLL,
        tp: TPGroup,
        num_threads: int,
        max_len: int,
        block_size: int,
        packed: dict[int, PackedRows] | None = None,
    ) -> None:
        """`packed`: weights that were packed when they were read, by their parameters' address."""
        self.spec = decoder.spec
        self._decoder, self._library, self._tp = decoder, library, tp
        self._dtype = decoder.embedding.weight.dtype
        self._team = Team(library, num_threads)
        self._attention = NativeAttention(library, self._team)
        packer = Packer(library, self._team, packed, partial(coded, library, self._team))
        self._has_ends = decoder.project_in is None
        self._layers = layers_of(decoder)
        self._has_attention = [has_native_attention(x.attention, tp) for x in self._layers]
        self._has_mlp = [has_native_mlp(x.mlp) for x in self._layers]
        self._terms = TermsBuilder(decoder, tp, packer, max_len, block_size).build()
        packer.close()
        self._program: int = library.shoal_program_create(
            ctypes.byref(self._terms.model), self._team.handle
        )
        if not self._program:
            raise MemoryError("no memory for the native program")
        # The team must go after the program.
        destroy_with(self, _destroy, library, self._program, self._team)
        self._is_all_native = self._has_ends and self._native_until(0) == self.spec.num_layers
        # Whether `forward_greedy` can be called.
        self.can_choose = self._is_all_native and self.spec.vocab_size < _MOST_CHOICES
        self._stride = padded(self.spec.hidden_size)
        self._logits_stride = padded(decoder.lm_head.num_rows)
        self._caches: list[LayerKVCache] | None = None
        self._groups: ctypes.Array[GroupStruct] | None = None  # of the step begun last
        self._num_tokens = 0  # of the step begun last

    @property
    def parts_on_torch(self) -> list[str]:
        """What torch computes between native parts: attention over the cache never is."""
        parts = {
            "attention's projections": self._has_attention,
            "MLP": self._has_mlp,
            "embedding and head": [self._has_ends],
        }
        return [part for part, is_native in parts.items() if not all(is_native)]

    def parameters(self) -> list[Tensor]:
        """All weights, packed or not, each once."""
        tensors = [x for x in self._terms.weights() if x.numel()]
        tensors += [x for x in self._decoder.parameters() if x.numel()]
        return list({x.data_ptr(): x for x in tensors}.values())

    def forward(
        self, token_ids: Tensor, ctx: ForwardContext, selected: Tensor
    ) -> tuple[Tensor, Tensor]:
        """token_ids: [T]; selected: [S] int64, rows whose logits are wanted. Returns the last
        layer's output, [T, hidden] fp32, before the final norm, and those logits, [S, vocab_size]
        fp32: they cost less within the step than after it.

        Raises: MemoryError when the step's buffers cannot be had.
        """
        x = self._begin_step(token_ids, ctx)
        hidden = x[:, : self.spec.hidden_size]
        if self._is_all_native:
            return hidden, self._run_step(x, selected)
        self._embed(x, token_ids, ctx)
        self._run_layers(x, ctx)
        return hidden, self.logits(hidden.index_select(0, selected))

    def forward_greedy(
        self, token_ids: Tensor, ctx: ForwardContext, selected: Tensor
    ) -> tuple[Tensor, list[int]]:
        """As `forward`, but returns each row's greatest logit's place, the first of equal ones: the
        logits themselves are kept nowhere. NaN counts as minus infinity.
        """
        assert self.can_choose, "a head that is not computed within the step"
        x = self._begin_step(token_ids, ctx)
        largest = (ctypes.c_int64 * len(selected))()
        self._library.shoal_run_greedy_step(
            self._program,
            x.data_ptr(),
            self._stride,
            selected.data_ptr(),
            len(selected),
            largest,
            self.spec.vocab_size,
        )
        return x[:, : self.spec.hidden_size], largest[:]

    def logits(self, x: Tensor) -> Tensor:
        """x: [N, hidden], rows of `forward`'s result; returns [N, vocab_size] fp32."""
        if not self._has_ends:
            return self._decoder.logits(x.to(self._dtype)).float()
        assert len(x) <= self._num_tokens, "the step's buffers have no more rows"
        out = torch.empty(x.shape[0], self._logits_stride, dtype=torch.float32)
        if len(x):
            self._library.shoal_logits(
                self._program,
                x.data_ptr(),
                x.stride(0),
                None,
                len(x),
                out.data_ptr(),
                self._logits_stride,
            )
        if self._tp.size > 1:
            out = self._tp.all_gather(out[:, : self._decoder.lm_head.num_rows].contiguous())
        return out[:, : self.spec.vocab_size]

    def _run_step(self, x: Tensor, selected: Tensor) -> Tensor:
        """x: [T, stride], filled here. Returns logits."""
        num_rows = len(selected)
        out = torch.empty(num_rows, self._logits_stride, dtype=torch.float32)
        self._library.shoal_run_step(
            self._program,
            x.data_ptr(),
            self._stride,
            selected.data_ptr(),
            num_rows,
            out.data_ptr(),
            self._logits_stride,
        )
        return out[:, : self.spec.vocab_size]

    def _run_layers(self, x: Tensor, ctx: ForwardContext) -> None:
        rotations: list[Rotation | None] | None = None
        layer = 0
        while layer < self.spec.num_layers:
            stop = self._native_until(layer)
            if stop > layer:
                self._library.shoal_run_layers(
                    self._program, layer, stop, x.data_ptr(), self._stride
                )
                layer = stop
                continue
            if rotations is None:
                ctx.backend = self._attention
                rotations = self._decoder.rotations(ctx.positions)
            self._run_in_parts(layer, x, rotations[layer], ctx)
            layer += 1

    def _begin_step(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """Returns the residual stream to be: [T, stride]."""
        if self._caches is not ctx.kv_caches:
            self._set_caches(ctx.kv_caches)
        layout = ctx.layouts[0]  # all groups' are of the same sequences
        step = StepStruct(
            token_ids.data_ptr(),
            ctx.positions.data_ptr(),
            self._group_structs(ctx),
            layout.query_lens.ctypes.data,
            layout.context_lens.ctypes.data,
            len(token_ids),
            *layout.block_tables.shape,
        )
        if not self._library.shoal_begin_step(self._program, ctypes.byref(step)):
            raise MemoryError(f"no memory for a step of {len(token_ids)} tokens")
        self._num_tokens = len(token_ids)
        return torch.empty(len(token_ids), self._stride, dtype=torch.float32)

    def _group_structs(self, ctx: ForwardContext) -> ctypes.Array[GroupStruct]:
        """Kept until the next step begins: the program reads them until this one ends."""
        self._groups = (GroupStruct * len(ctx.layouts))(
            *(
                GroupStruct(slots.data_ptr(), layout.block_tables.ctypes.data)
                for slots, layout in zip(ctx.slot_mappings, ctx.layouts, strict=True)
            )
        )
        return self._groups

    def _set_caches(self, caches: list[LayerKVCache]) -> None:
        structs = (LayerCacheStruct * len(caches))(
            *(LayerCacheStruct(x.k.data_ptr(), x.v.data_ptr(), x.group) for x in caches)
        )
        self._library.shoal_set_caches(self._program, structs)
        self._caches = caches

    def _embed(self, x: Tensor, token_ids: Tensor, ctx: ForwardContext) -> None:
        """Fills x: [T, stride]; what is beyond the hidden size means nothing."""
        if not self._has_ends:
            x[:, : self.spec.hidden_size] = self._decoder.embed(token_ids, ctx.positions)
            return
        self._library.shoal_look_up(self._program, x.data_ptr(), self._stride)
        if self._tp.size > 1:
            x.copy_(self._tp.all_reduce(x))
        self._library.shoal_finish_embedding(self._program, x.data_ptr(), self._stride)

    def _native_until(self, first: int) -> int:
        """The end of the run of layers from `first` on that one call computes."""
        stop = first
        if self._tp.size == 1:
            while stop < self.spec.num_layers and self._has_attention[stop] and self._has_mlp[stop]:
                stop += 1
        return stop

    def _run_in_parts(
        self, index: int, x: Tensor, rotation: Rotation | None, ctx: ForwardContext
    ) -> None:
        """One layer, in place. Between its parts the ranks add up what each has computed."""
        if isinstance(self._layers[index], ParallelLayer):
            self._run_parallel(index, x, rotation, ctx)
        else:
            self._add_part(index, True, x, self._attention_part(index, x, rotation, ctx))
            self._add_part(index, False, x, self._mlp_part(index, x))

    def _run_parallel(
        self, index: int, x: Tensor, rotation: Rotation | None, ctx: ForwardContext
    ) -> None:
        """Attention and MLP are added up before the ranks add up."""
        if not (self._has_attention[index] and self._has_mlp[index]):
            hidden = x[:, : self.spec.hidden_size]
            hidden.copy_(self._layers[index](hidden.to(self._dtype), rotation, ctx))
            return
        y = torch.empty_like(x)
        arguments = (self._program, index, x.data_ptr(), y.data_ptr(), self._stride)
        self._library.shoal_attention_part(*arguments)
        self._library.shoal_mlp_part(*arguments)
        self._add_part(index, False, x, self._tp.all_reduce(y))

    def _attention_part(
        self, index: int, x: Tensor, rotation: Rotation | None, ctx: ForwardContext
    ) -> Tensor:
        """The sum over ranks: [T, stride]."""
        # New for each part: an all-reduce may hand out a buffer that the next one writes to.
        y = torch.empty_like(x)
        if self._has_attention[index]:
            self._library.shoal_attention_part(
                self._program, index, x.data_ptr(), y.data_ptr(), self._stride
            )
            return self._tp.all_reduce(y)
        layer = self._layers[index]
        normed = self._normed(layer, layer.attention_norm, x)
        y[:, : self.spec.hidden_size] = layer.attention(normed, rotation, ctx)
        return y

    def _mlp_part(self, index: int, x: Tensor) -> Tensor:
        """The sum over ranks: [T, stride]."""
        y = torch.empty_like(x)
        if self._has_mlp[index]:
            self._library.shoal_mlp_part(
                self._program, index, x.data_ptr(), y.data_ptr(), self._stride
            )
            return self._tp.all_reduce(y)
        layer = self._layers[index]
        assert layer.mlp_norm is not None, "a layer in parallel"
        y[:, : self.spec.hidden_size] = layer.mlp(self._normed(layer, layer.mlp_norm, x))
        return y

    def _add_part(self, index: int, is_attention: bool, x: Tensor, y: Tensor) -> None:
        self._library.shoal_add_part(
            self._program, index, is_attention, x.data_ptr(), y.data_ptr(), self._stride
        )

    def _normed(self, layer: AnyLayer, norm: nn.Module, x: Tensor) -> Tensor:
        hidden = x[:, : self.spec.hidden_size].to(self._dtype)
        return hidden if isinstance(layer, SumNormLayer) else norm(hidden)


def _destroy(library: ctypes.CDLL, program: int, team: Team) -> None:
    library.shoal_program_destroy(program)
    del team
