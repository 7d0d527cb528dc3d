"""Older families as their published checkpoints have them: names, buffers, and options that
transformers reads but does not apply.
"""

import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.worker.models.family_parity import assert_checkpoint_parity
from tests.worker.models.harness import make_checkpoint, make_runner
from tests.worker.models.test_families_classic import BLOOM, FALCON, GPT, MPT, SHAPE, make_config
from tests.worker.simulated_group import run_ranks
from worker.config import RunnerConfig
from worker.errors import CheckpointError
from worker.memory_plan import plan_memory
from worker.models.classic import alibi_slopes
from worker.models.config import ModelConfig, load_model_config
from worker.models.registry import find_family
from worker.models.spec import ModelSpec

GIB = 1 << 30

# As published: mosaicml/mpt-7b.
MPT_7B: dict[str, Any] = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "model_type": "mpt",
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 50432,
}


def write_config(path: Path, config: dict[str, Any]) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(config))
    return load_model_config(str(path))


def spec_of(config: ModelConfig) -> ModelSpec:
    return find_family(config).build_spec(config)


def write_hollow_weights(path: Path, shapes: dict[str, list[int]]) -> None:
    """A bfloat16 file with a true header and a hole where the data would be."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def change_tensors(path: Path, change: Any) -> None:
    tensors = load_file(path / "model.safetensors")
    save_file(change(tensors), path / "model.safetensors")


def test_mpt_7b_is_planned_and_read_as_published(tmp_path: Path) -> None:
    config = write_config(tmp_path, MPT_7B)
    shapes = {"transformer.wte.weight": [50432, 4096], "transformer.norm_f.weight": [4096]}
    for layer in range(32):
        block = f"transformer.blocks.{layer}."
        shapes |= {block + f"norm_{i}.weight": [4096] for i in (1, 2)}
        shapes[block + "attn.Wqkv.weight"] = [3 * 4096, 4096]
        shapes[block + "attn.out_proj.weight"] = [4096, 4096]
        shapes[block + "ffn.up_proj.weight"] = [16384, 4096]
        shapes[block + "ffn.down_proj.weight"] = [4096, 16384]
    write_hollow_weights(tmp_path, shapes)
    plan = plan_memory(config, RunnerConfig(str(tmp_path)), 1, "cuda", 80 * GIB)
    assert plan.weight_bytes == 2 * 6_649_286_656
    assert plan.block_bytes == 16 * 512 * 1024
    assert plan.max_model_len == 2048
    spec = spec_of(config)
    assert set(find_family(config).build_weight_map(spec).targets) == set(shapes)
    assert not spec.qkv_bias and not spec.norm_bias and spec.tied_head
    assert spec.num_learned_positions == 0
    assert spec.alibi_slopes[0] == 2**-0.25 and spec.alibi_slopes[-1] == 2**-8


def test_mpt_storywriter_clips_and_has_flatter_slopes(tmp_path: Path) -> None:
    attention = {**MPT_7B["attn_config"], "clip_qkv": 6, "alibi_bias_max": 16}
    spec = spec_of(write_config(tmp_path, {**MPT_7B, "attn_config": attention}))
    assert spec.clip_qkv == 6
    assert spec.alibi_slopes[0] == 2**-0.5 and spec.alibi_slopes[-1] == 2**-16


def test_slopes_of_heads_that_are_no_power_of_two() -> None:
    assert alibi_slopes(4) == (2**-2, 2**-4, 2**-6, 2**-8)
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)


def test_falcon_rw_rounds_its_slopes_and_scales_them(tmp_path: Path) -> None:
    options = {**FALCON, "num_attention_heads": 8, "alibi": True}
    spec = spec_of(write_config(tmp_path, make_config("FalconForCausalLM", options).to_dict()))
    assert spec.alibi_slopes[0] == 0.5 * 4**-0.5
    options = {**FALCON, "num_attention_heads": 16, "alibi": True}
    spec = spec_of(write_config(tmp_path, make_config("FalconForCausalLM", options).to_dict()))
    assert spec.alibi_slopes[0] == 0.70703125 * 2**-0.5  # bfloat16 of 2 ** -0.5


class NormedQKV(nn.Module):
    """LLM Foundry's order: projection, then LayerNorm over all query and all key features."""

    def __init__(self, linear: nn.Linear, q_ln: nn.LayerNorm, k_ln: nn.LayerNorm) -> None:
        super().__init__()
        self.linear, self.q_ln, self.k_ln = linear, q_ln, k_ln

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.linear(x).chunk(3, dim=-1)
        return torch.cat((self.q_ln(q), self.k_ln(k), v), dim=-1)


def original_mpt(path: Path, has_bias: bool, **changes: Any) -> Any:
    """Makes transformers' MPT do what the original does, and saves it as the original names it."""
    model = make_checkpoint(path, make_config("MptForCausalLM", MPT))
    size = MPT["d_model"]
    with torch.no_grad():
        for block in model.transformer.blocks:
            block.attn.q_ln = nn.LayerNorm(size, bias=has_bias)
            block.attn.k_ln = nn.LayerNorm(size, bias=has_bias)
            if has_bias:
                for linear in (
                    block.attn.Wqkv,
                    block.attn.out_proj,
                    block.ffn.up_proj,
                    block.ffn.down_proj,
                ):
                    linear.bias = nn.Parameter(torch.empty(linear.out_features))
        if has_bias:
            for module in model.modules():
                if isinstance(module, nn.LayerNorm):
                    module.bias = nn.Parameter(torch.empty(size))
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "_ln" in name:
                parameter.normal_(0.5, 0.3)
    tensors = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, path / "model.safetensors")
    change_config(path, architectures=["MPTForCausalLM"], no_bias=not has_bias, **changes)
    for block in model.transformer.blocks:
        attention = block.attn
        attention.Wqkv = NormedQKV(attention.Wqkv, attention.q_ln, attention.k_ln)
    return model


@pytest.mark.parametrize("has_bias", [False, True])
def test_mpt_options_follow_the_original(tmp_path: Path, has_bias: bool) -> None:
    attention = {"alibi": True, "qk_ln": True, "alibi_bias_max": 16}
    model = original_mpt(tmp_path, has_bias, attn_config=attention, logit_scale="inv_sqrt_d_model")
    slopes = partial(model.transformer.build_mpt_alibi_tensor, alibi_bias_max=16)
    model.transformer.build_mpt_alibi_tensor = slopes
    model.lm_head.register_forward_hook(lambda *call: call[-1] * MPT["d_model"] ** -0.5)
    assert_checkpoint_parity(tmp_path, model, (1, 2, 4))


def test_gpt2_without_prefix_and_with_saved_masks(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, make_config("GPT2LMHeadModel", GPT))

    def as_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        for layer in range(2):
            renamed[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 256, 256)
            renamed[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        return renamed

    change_tensors(tmp_path, as_published)
    assert_checkpoint_parity(tmp_path, model, (1, 2))


def test_pythia_with_its_head_and_buffers_as_published(tmp_path: Path) -> None:
    options = {**SHAPE, "rotary_pct": 0.5, "rotary_emb_base": 5000}
    model = make_checkpoint(tmp_path, make_config("GPTNeoXForCausalLM", options))
    change_config(tmp_path, rope_parameters=None, rotary_pct=0.5, rotary_emb_base=5000)

    def as_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        head = tensors.pop("lm_head.weight", None)
        if head is not None:
            tensors["embed_out.weight"] = head
        tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 256, 256)
        tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(1)
        return tensors

    change_tensors(tmp_path, as_published)
    assert_checkpoint_parity(tmp_path, model, (1,))


def test_falcon_in_its_first_spelling(tmp_path: Path) -> None:
    options = {**FALCON, "ffn_hidden_size": None}
    model = make_checkpoint(tmp_path, make_config("FalconForCausalLM", options))
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["RWForCausalLM"],
                "vocab_size": 99,
                "hidden_size": 32,
                "n_layer": 2,
                "n_head": 4,
                "multi_query": True,
                "parallel_attn": True,
                "alibi": False,
                "bias": False,
                "layer_norm_epsilon": 1e-5,
                "torch_dtype": "float32",
            }
        )
    )
    change_tensors(
        tmp_path,
        lambda tensors: {
            **tensors,
            "lm_head.weight": tensors["transformer.word_embeddings.weight"].clone(),
        },
    )
    assert_checkpoint_parity(tmp_path, model, (1,))


def test_bloom_in_its_first_spelling(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, make_config("BloomForCausalLM", BLOOM))
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["BloomForCausalLM"],
                "vocab_size": 99,
                "n_embed": 32,
                "n_layer": 2,
                "num_attention_heads": 4,
                "seq_length": 512,
            }
        )
    )
    change_tensors(tmp_path, lambda t: {n.removeprefix("transformer."): x for n, x in t.items()})
    assert load_model_config(str(tmp_path)).max_position == 512
    assert_checkpoint_parity(tmp_path, model, (1,))


@pytest.mark.parametrize(
    ("architecture", "options", "change", "message"),
    [
        ("MptForCausalLM", MPT, {"norm_type": "rmsnorm"}, "norm_type='rmsnorm'"),
        ("MptForCausalLM", MPT, {"attn_config": {"prefix_lm": True}}, "prefix_lm=True"),
        ("MptForCausalLM", MPT, {"attn_config": {"rope": True}}, "rope=True"),
        (
            "GPT2LMHeadModel",
            GPT,
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx=True",
        ),
        (
            "BloomForCausalLM",
            BLOOM,
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm=True",
        ),
        ("OPTForCausalLM", {**SHAPE, "ffn_dim": 4}, {"activation_function": "mish"}, "'mish'"),
    ],
)
def test_option_that_no_published_model_has_is_refused(
    tmp_path: Path,
    architecture: str,
    options: dict[str, Any],
    change: dict[str, Any],
    message: str,
) -> None:
    config = {**make_config(architecture, options).to_dict(), **change}
    with pytest.raises(CheckpointError, match=message):
        spec_of(write_config(tmp_path, config))


def test_fused_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, make_config("BloomForCausalLM", BLOOM))
    name = "transformer.h.1.self_attention.query_key_value.bias"
    change_tensors(tmp_path, lambda tensors: {**tensors, name: torch.ones(95)})
    with pytest.raises(CheckpointError, match=r"query_key_value\.bias has shape \[95\], not \[96"):
        make_runner(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("MptForCausalLM", MPT),
        ("GPT2LMHeadModel", GPT),
        ("OPTForCausalLM", {**SHAPE, "ffn_dim": 44, "word_embed_proj_dim": 20}),
        ("GPTBigCodeForCausalLM", GPT),
        ("FalconForCausalLM", FALCON),
    ],
)
def test_plan_at_two_ranks_covers_what_is_loaded(
    tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    make_checkpoint(tmp_path, make_config(architecture, options))
    tensors = load_file(tmp_path / "model.safetensors").values()
    vector_bytes = sum(4 * t.numel() for t in tensors if t.dim() < 2)

    def check(tp: Any) -> None:
        runner = make_runner(tmp_path, tp, native_kernels=False)  # without their padding
        assert runner._model is not None
        loaded = sum(p.numel() * p.element_size() for p in runner._model.parameters())
        assert loaded <= runner.memory_plan.weight_bytes <= loaded + vector_bytes

    run_ranks(2, check)
