"""The k largest logits of each row. Called by truncation and by logprobs; knows neither.

torch.topk on a CPU walks a whole vocabulary through a heap. Maxima of small blocks narrow the
search first: the k largest elements lie in the k blocks with the largest maxima.
"""

import torch
from torch import Tensor

_BLOCK = 64


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """x: [R, V] without NaN. Returns values, descending, and ids, [R, k] each. The order of
    equal logits is unspecified, as is which of several at the list's end are in it.
    """
    num_blocks = x.shape[1] // _BLOCK
    if x.device.type != "cpu" or num_blocks < 4 * k:
        values, ids = x.topk(k, dim=1)
        return values, ids
    num_in_blocks = num_blocks * _BLOCK
    blocks = x[:, :num_in_blocks].unflatten(1, (num_blocks, _BLOCK))
    chosen = blocks.amax(dim=2).topk(k, dim=1).indices[:, :, None]  # [R, k, 1]
    values = blocks.gather(1, chosen.expand(-1, -1, _BLOCK)).flatten(1)
    ids = (chosen * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    rest = torch.arange(num_in_blocks, x.shape[1]).expand(x.shape[0], -1)
    values = torch.cat([values, x[:, num_in_blocks:]], dim=1)
    ids = torch.cat([ids, rest], dim=1)
    top, places = values.topk(k, dim=1)
    return top, ids.gather(1, places)
