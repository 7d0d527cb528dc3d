"""How many numbers of a checkpoint one rank will hold, counted by the names and shapes of its
tensors.

No torch: the memory plan asks before anything is loaded. What it says of a family's tensors is held
against the parameters that are really loaded by the families' parity tests.
"""

from worker.layers.shard import divide_up
from worker.models.checkpoint import read_tensor_entries
from worker.models.config import ModelConfig
from worker.models.spec import ModelSpec
from worker.models.tensor_entry import TensorEntry

_HEADS = ("lm_head.weight", "embed_out.weight")
_BUFFERS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".attn.embed_positions",
    ".attn.causal_mask",
    "rotary_emb.inv_freq",
)
_EXPERTS = ".experts."
_UNUSED_PARTS = ("vision_tower.", "multi_modal_projector.")
_WHOLE_MATRICES = (
    "wpe.weight",
    "q_norm.weight",
    "k_norm.weight",
    "embed_positions.weight",
    "project_in.weight",
    "project_out.weight",
    "mlp.gate.weight",
    "mlp.router.weight",
    "block_sparse_moe.gate.weight",
    "shared_expert_gate.weight",
    "q_a_proj.weight",
    "kv_a_proj_with_mqa.weight",
    "experts.down_proj_bias",
)


def weight_elements(model: ModelConfig, spec: ModelSpec, tp_size: int, num_kv_heads: int) -> int:
    """Numbers of one rank, which has so many KV heads: matrices are split, vectors replicated, KV
    projections split or shared. An upper estimate at several ranks, where some vectors are split
    too.
    """
    found = read_tensor_entries(model.path, model.quantization).values()
    entries = [entry for entry in found if _is_loaded(entry.name, model)]
    experts = 0
    if spec.moe is not None and spec.moe.is_expert_parallel:
        of_experts = [e for e in entries if _EXPERTS in e.name]
        entries = [e for e in entries if _EXPERTS not in e.name]
        num_own = divide_up(spec.moe.num_experts, tp_size)
        experts = sum(e.num_elements for e in of_experts) // spec.moe.num_experts * num_own
    whole = sum(e.num_elements for e in entries if _is_on_every_rank(e))
    matrices = sum(_padded_elements(e, model, tp_size) for e in entries if not _is_on_every_rank(e))
    kv_head = 2 * model.num_layers * model.hidden_size * model.head_dim
    if spec.mla is not None:  # made by a small product that every rank has whole
        kv_head = 0
    split = matrices - kv_head * model.num_kv_heads
    return experts + whole + divide_up(split, tp_size) + kv_head * num_kv_heads


def _is_loaded(name: str, model: ModelConfig) -> bool:
    """Not so are buffers that old checkpoints hold, the copy of a tied head, drafting layers and
    what is there for images.
    """
    if name.startswith((f"model.layers.{model.num_layers}.", *_UNUSED_PARTS)):
        return False
    is_copy = model.raw.get("tie_word_embeddings") and name.endswith(_HEADS)
    return not is_copy and not name.endswith(_BUFFERS)


def _is_on_every_rank(entry: TensorEntry) -> bool:
    return len(entry.shape) < 2 or entry.name.endswith(_WHOLE_MATRICES)


def _padded_elements(entry: TensorEntry, model: ModelConfig, tp_size: int) -> int:
    """The vocabulary is padded to a multiple of the ranks."""
    if entry.shape[0] != model.vocab_size:
        return entry.num_elements
    return divide_up(model.vocab_size, tp_size) * tp_size * entry.shape[1]
