"""Every variant of the kernels that this machine can run, for tests to go over."""

import ctypes
import functools

from worker.native.build import can_have_library, usable_variants
from worker.native.library import load_library

# Empty where no kernels can be had; where they can, sources that do not compile are a failure.
VARIANT_NAMES = [variant.name for variant in usable_variants()] if can_have_library() else []


@functools.cache
def library_of(name: str) -> ctypes.CDLL:
    variant = next(variant for variant in usable_variants() if variant.name == name)
    return load_library(variant)
