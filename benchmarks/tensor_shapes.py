"""The tensors that a checkpoint of a shape has, by the names that `transformers` gives them.

No values: `models.py` draws them, and a directory without any (`hollow_checkpoint`) is enough to
plan a model's memory by.
"""

import json
import math
import struct
from pathlib import Path

from benchmarks.shapes import Shape

TensorShapes = dict[str, tuple[int, ...]]

_BYTES = 2  # bfloat16


def tensor_shapes(shape: Shape) -> TensorShapes:
    if shape.architecture == "MPTForCausalLM":
        return _mpt(shape)
    hidden = shape.hidden_size
    tensors: TensorShapes = {
        "model.embed_tokens.weight": (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not shape.extra.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = (shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        for part in (_norms(shape), _attention(shape), _mlp(shape)):
            tensors |= {prefix + name: size for name, size in part.items()}
    return tensors


def _norms(shape: Shape) -> TensorShapes:
    names = ("input_layernorm", "post_attention_layernorm")
    return {f"{name}.weight": (shape.hidden_size,) for name in names}


def _attention(shape: Shape) -> TensorShapes:
    hidden = shape.hidden_size
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    tensors: TensorShapes = {}
    for name, num_out in (("q", q_size), ("k", kv_size), ("v", kv_size)):
        tensors[f"self_attn.{name}_proj.weight"] = (num_out, hidden)
        if shape.has_qkv_bias:
            tensors[f"self_attn.{name}_proj.bias"] = (num_out,)
    if shape.num_experts:
        tensors |= {f"self_attn.{part}_norm.weight": (shape.head_dim,) for part in "qk"}
    return tensors | {"self_attn.o_proj.weight": (hidden, q_size)}


def _mlp(shape: Shape) -> TensorShapes:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    sizes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    if not shape.num_experts:
        return {f"mlp.{name}_proj.weight": size for name, size in sizes.items()}
    tensors: TensorShapes = {"mlp.gate.weight": (shape.num_experts, hidden)}
    for expert in range(shape.num_experts):
        for name, size in sizes.items():
            tensors[f"mlp.experts.{expert}.{name}_proj.weight"] = size
    return tensors


def _mpt(shape: Shape) -> TensorShapes:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    layer: TensorShapes = {
        "norm_1.weight": (hidden,),
        "attn.Wqkv.weight": (3 * hidden, hidden),
        "attn.out_proj.weight": (hidden, hidden),
        "norm_2.weight": (hidden,),
        "ffn.up_proj.weight": (inner, hidden),
        "ffn.down_proj.weight": (hidden, inner),
    }
    tensors: TensorShapes = {
        "transformer.wte.weight": (shape.vocab_size, hidden),
        "transformer.norm_f.weight": (hidden,),
    }
    for i in range(shape.num_layers):
        tensors |= {f"transformer.blocks.{i}.{name}": size for name, size in layer.items()}
    return tensors


def hollow_checkpoint(shape: Shape, path: Path) -> None:
    """A safetensors file of the shape's size that takes no room: a header, then a hole."""
    header: dict[str, object] = {}
    end = 0
    for name, size in tensor_shapes(shape).items():
        start, end = end, end + math.prod(size) * _BYTES
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
