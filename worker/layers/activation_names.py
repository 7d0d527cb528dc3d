"""The activations there are, by their names in a config: no torch here, as in all that reads
configs. `layers/activation.py` computes them.
"""

ACTIVATION_NAMES = frozenset(
    ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")
)
