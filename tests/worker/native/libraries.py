"""Every variant of the kernels that this machine can run, for tests to go over."""

import ctypes
import functools

import pytest

from worker.errors import NativeBuildError
from worker.native.build import usable_variants
from worker.native.library import load_library

VARIANT_NAMES = [variant.name for variant in usable_variants()]


@functools.cache
def library_of(name: str) -> ctypes.CDLL:
    variant = next(variant for variant in usable_variants() if variant.name == name)
    try:
        return load_library(variant)
    except NativeBuildError as error:
        pytest.skip(f"no native kernels here: {error}")
