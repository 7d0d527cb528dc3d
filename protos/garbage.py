"""How often a serving process looks for reference cycles: the gateway's and the leader's.

Requests make few of them, but a full collection walks everything the imports have left, several
hundred thousand objects: it took 3 % of a busy gateway's time, and held all of its streams up for
tens of milliseconds each time.
"""

import gc

_YOUNG_OBJECTS = 20_000  # net allocations between collections of the youngest; Python: 700


def spare_garbage_collection() -> None:
    """Once, after the imports: what lives now lives for ever and need not be walked again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)
