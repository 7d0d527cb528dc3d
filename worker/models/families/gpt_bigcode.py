"""GPTBigCode (StarCoder, SantaCoder): GPT-2 with one KV head for all and weights as [out, in]."""

from worker.models.classic import grouped_qkv, head_targets, tied_names, with_bias
from worker.models.config import ModelConfig
from worker.models.families import gpt2
from worker.models.family import Family, Target, Targets, WeightMap, fused, layer_targets
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    return gpt2.build_spec(config)


def build_weight_map(spec: ModelSpec) -> WeightMap:
    qkv = fused("attention.qkv", grouped_qkv(spec), spec.num_kv_heads)
    layer: dict[str, Targets] = {
        **with_bias("ln_1", "attention_norm"),
        **with_bias("attn.c_attn", qkv),
        **with_bias("attn.c_proj", "attention.output"),
        **with_bias("ln_2", "mlp_norm"),
        **with_bias("mlp.c_fc", "mlp.up"),
        **with_bias("mlp.c_proj", "mlp.down"),
    }
    targets: dict[str, Targets] = {
        "transformer.wte.weight": Target("embedding.weight"),
        "transformer.wpe.weight": Target("positions.weight"),
        **with_bias("transformer.ln_f", "norm"),
        **head_targets(spec),
        **layer_targets("transformer.h.{}.", spec.num_layers, layer),
    }
    return WeightMap(
        targets,
        ignored_suffixes=(".attn.bias", ".attn.masked_bias"),
        ignored_names=tied_names(spec),
    )


FAMILY = Family(("GPTBigCodeForCausalLM",), build_spec, build_weight_map)
