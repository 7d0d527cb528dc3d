"""Parameters of latent attention, as data: no torch here, as in all that reads configs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MLASpec:
    """Sizes of multi-head latent attention; the cache holds kv_rank + rope_dim numbers a token."""

    q_rank: int | None  # None: queries are projected in one step
    kv_rank: int  # of the latent that keys and values are made from
    nope_dim: int  # of a query or key head, without the part that is rotated
    rope_dim: int  # the rotated part; all heads share one key
    v_dim: int
