"""The compiled kernels as a ctypes library: chosen for this CPU, loaded once a process.

Owns the functions' signatures. Calls that compute let other Python threads run meanwhile. Where
there is no library (no compiler and none packaged, another architecture), one line in the log says
so and models run on torch. Called by the model runner and by tests.
"""

import ctypes
import functools
import logging
import os
import weakref
from collections.abc import Callable
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from typing import Any

from worker.errors import NativeBuildError
from worker.native.build import Variant, library_path, usable_variants
from worker.native.structs import (
    GroupStruct,
    KindStruct,
    LayerAttentionStruct,
    LayerCacheStruct,
    LayerStruct,
    MatrixStruct,
    ModelStruct,
    MoEStruct,
    StepStruct,
)

logger = logging.getLogger(__name__)

_STRUCTURES = (  # as `shoal_struct_bytes` numbers them
    ModelStruct,
    LayerStruct,
    MoEStruct,
    KindStruct,
    StepStruct,
    LayerCacheStruct,
    LayerAttentionStruct,
    GroupStruct,
)
# Short ones between a step's Python: who let another thread in for one of them would wait for that
# thread's whole turn with the interpreter, in the middle of a step.
_KEEPING_THE_LOCK = ("shoal_begin_step", "shoal_set_caches", "shoal_attention_begin")
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "shoal_struct_bytes": (c_int, [c_int]),
    "shoal_team_create": (c_void_p, [c_int]),
    "shoal_team_destroy": (None, [c_void_p]),
    "shoal_pack_rows": (
        None,
        [
            c_void_p,  # team
            c_int,  # dtype
            c_void_p,  # data
            c_int64,  # row_stride
            c_int64,  # column_stride
            c_int,  # num_rows
            c_int,  # num_columns
            c_void_p,  # columns
            c_void_p,  # out
            c_int,  # depth
        ],
    ),
    "shoal_program_create": (c_void_p, [POINTER(ModelStruct), c_void_p]),
    "shoal_program_destroy": (None, [c_void_p]),
    "shoal_set_caches": (None, [c_void_p, POINTER(LayerCacheStruct)]),
    "shoal_begin_step": (c_int, [c_void_p, POINTER(StepStruct)]),
    "shoal_look_up": (None, [c_void_p, c_void_p, c_int]),
    "shoal_finish_embedding": (None, [c_void_p, c_void_p, c_int]),
    "shoal_run_layers": (None, [c_void_p, c_int, c_int, c_void_p, c_int]),
    "shoal_attention_part": (None, [c_void_p, c_int, c_void_p, c_void_p, c_int]),
    "shoal_mlp_part": (None, [c_void_p, c_int, c_void_p, c_void_p, c_int]),
    "shoal_add_part": (None, [c_void_p, c_int, c_int, c_void_p, c_void_p, c_int]),
    "shoal_logits": (None, [c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_int]),
    "shoal_run_step": (None, [c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_int]),
    "shoal_run_greedy_step": (
        None,
        [c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_int],
    ),
    "shoal_attention_create": (c_void_p, [c_void_p]),
    "shoal_attention_destroy": (None, [c_void_p]),
    "shoal_attention_begin": (c_int, [c_void_p, POINTER(KindStruct), POINTER(StepStruct)]),
    "shoal_attention_run": (None, [c_void_p, POINTER(LayerAttentionStruct)]),
    "shoal_encode": (
        c_int,
        [
            c_void_p,  # team
            c_void_p,  # data
            c_int,  # num_panels
            c_int,  # depth
            c_void_p,  # out
            c_void_p,  # codes
            c_void_p,  # strays
            c_int,  # max_strays
        ],
    ),
    "shoal_probe_multiply": (
        None,
        [c_void_p, c_int, c_void_p, c_int, POINTER(MatrixStruct), c_void_p],
    ),
    "shoal_probe_row": (None, [c_int, POINTER(MatrixStruct), c_int, c_int, c_void_p]),
    "shoal_probe_read": (c_float, [c_void_p, c_void_p, c_int64]),
}


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The best variant for this CPU; None: there is none, and the log says why."""
    try:
        return load_library(best_variant())
    except NativeBuildError as error:
        logger.warning("no native kernels, models run on torch alone: %s", error)
        return None


def best_variant() -> Variant:
    """SHOAL_NATIVE_VARIANT, for debugging, names another. Raises: NativeBuildError."""
    variants = usable_variants()
    wanted = os.environ.get("SHOAL_NATIVE_VARIANT")
    if wanted:
        variants = [variant for variant in variants if variant.name == wanted]
    if not variants:
        raise NativeBuildError(
            "none are written for this CPU" + f", or not {wanted}" * bool(wanted)
        )
    return variants[0]


def load_library(variant: Variant) -> ctypes.CDLL:
    """Compiles it first where needed. Raises: NativeBuildError."""
    path = library_path(variant)
    try:
        library = ctypes.CDLL(str(path))
        keeping_the_lock = ctypes.PyDLL(str(path))
    except OSError as error:
        raise NativeBuildError(f"cannot load {path}: {error}") from error
    for name in _KEEPING_THE_LOCK:
        setattr(library, name, getattr(keeping_the_lock, name))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for i, structure in enumerate(_STRUCTURES):
        if library.shoal_struct_bytes(i) != ctypes.sizeof(structure):
            raise NativeBuildError(f"{path} and structs.py differ in {structure.__name__}")
    logger.info("native kernels: %s", variant.name)
    return library


def destroy_with(owner: object, destroy: Callable[..., None], *arguments: object) -> None:
    """Calls destroy(*arguments) once the owner is gone. Not at the interpreter's exit, when another
    thread may be in the middle of a step: the system takes back memory and threads then.
    """
    weakref.finalize(owner, destroy, *arguments).atexit = False


class Team:
    """Threads that compute together; `size` counts the one that calls. Used by one at a time, and
    only in the process that made it: a fork has none of the threads.
    """

    def __init__(self, library: ctypes.CDLL, size: int) -> None:
        """Raises: MemoryError when the system gives no more threads."""
        self.size = size
        self.handle: int = library.shoal_team_create(size)
        if not self.handle:
            raise MemoryError(f"cannot start {size - 1} threads")
        destroy_with(self, library.shoal_team_destroy, self.handle)
