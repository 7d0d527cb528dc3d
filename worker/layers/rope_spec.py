"""Parameters of rotary position encoding, as data: no torch here, as in all that reads configs."""

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """One rotary encoding and its scaling. Fields after `max_position` are for the kinds named."""

    theta: float
    rotary_dim: int  # leading dimensions of a head that are rotated; head_dim unless partial
    kind: RopeKind = "default"
    is_interleaved: bool = False  # neighbouring dimensions form pairs, not those half a head apart
    max_position: int = 0  # tokens; the config's max_position_embeddings
    factor: float = 1.0  # all but default
    original_max_position: int = 0  # llama3, yarn, longrope
    attention_factor: float | None = None  # yarn, longrope; None: derived
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float = 0.0  # yarn; 0: absent
    mscale_all_dim: float = 0.0  # yarn; 0: absent
    truncate: bool = True  # yarn
    short_factor: tuple[float, ...] = ()  # longrope, one per frequency
    long_factor: tuple[float, ...] = ()  # longrope
