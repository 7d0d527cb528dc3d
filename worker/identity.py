"""Who a replica is: what its gRPC face tells gateways and its reports tell the scheduler.

Plain data, made once by the shard when its engine is ready.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a gateway must know of a model to serve it."""

    deployment: str  # primary served name
    served_names: tuple[str, ...]
    root: str  # path or hub id the weights came from
    digest: str  # of the model's text files
    max_model_len: int  # tokens, prompt and output together
    block_size: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    created_unix_s: int = 0
    max_logprobs: int = 20


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """One incarnation of one replica; another incarnation has another epoch."""

    replica_id: str
    epoch: int
    model: ModelIdentity
    version: str = ""  # of this software
    tp_size: int = 1
    device: str = "cpu"
    dtype: str = "float32"
