"""How Triton kernels run in this process, as `tests/conftest.py` has chosen.

Without a GPU they run in Triton's interpreter, on CPU tensors; with one, compiled on the device.
Parity grids are written once and run either way: on a CPU in the default run, on a GPU under the
`gpu` marker.
"""

import os

import pytest
import torch

HAS_GPU = "TRITON_INTERPRET" not in os.environ
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")

# Of fp32 results of some ten operations: a card's exp2 and its sums differ more than numpy's.
TOLERANCE = 2e-5 if HAS_GPU else 2e-6

# Marks a module's tests: part of the default run in the interpreter, of `-m gpu` on a card.
_QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
runs_kernels = pytest.mark.gpu if HAS_GPU else _QUIET
