"""Which replica holds which prefix: one deployment's map from block hash to the replicas that cache
it.

Fed by the leaders' reports (the truth) and by placements just made (a guess that bridges the time
until the next report). It knows nothing of loads; the placement queue asks it. Replicas are bits of
an integer, so a lookup costs the same for one replica and for hundreds.
"""

from collections.abc import Iterable

from protos.block_hash import HASH_BYTES


class PrefixIndex:
    """Invariant: bit b is set in `_holders[h]` exactly if h is in the block set of the replica with
    bit b.

    Owned by the scheduler's event loop. Hashes are chained and engines evict tails first, so a
    replica that holds a block holds (but for rare holes) everything before it: `match` relies on
    that to probe a few depths instead of every block. A wrong guess costs a recomputed block, never
    a wrong answer.
    """

    def __init__(self, speculation_ttl_s: float = 4.0) -> None:
        self._ttl_s = speculation_ttl_s
        self._holders: dict[bytes, int] = {}
        self._blocks: dict[str, set[bytes]] = {}
        self._bits: dict[str, int] = {}  # replica -> its single-bit mask
        self._names: dict[int, str] = {}
        self._live = 0
        # Guesses live in two generations: writes go to the younger, and each rotation drops the
        # older, so an entry lives between one and two TTLs and expires without being visited.
        self._young: dict[bytes, int] = {}
        self._old: dict[bytes, int] = {}
        self._rotated_at = float("-inf")
        # A freed bit may still stand in guesses: it is reused only after two rotations.
        self._resting: list[int] = []
        self._rested: list[int] = []
        self._free: list[int] = []
        self._next_bit = 1

    def add(self, replica_id: str) -> None:
        assert replica_id not in self._bits
        if self._free:
            bit = self._free.pop()
        else:
            bit, self._next_bit = self._next_bit, self._next_bit << 1
        self._bits[replica_id] = bit
        self._names[bit] = replica_id
        self._blocks[replica_id] = set()
        self._live |= bit

    def remove(self, replica_id: str) -> None:
        """Forget a replica; O(its blocks). Unknown replicas are fine: a death may be noticed
        twice.
        """
        if replica_id not in self._bits:
            return
        self.replace(replica_id, ())
        bit = self._bits.pop(replica_id)
        del self._names[bit], self._blocks[replica_id]
        self._live &= ~bit
        self._resting.append(bit)

    def replace(self, replica_id: str, stored: Iterable[bytes]) -> None:
        """The replica's whole cache, from a full report."""
        new = set(stored)
        self.update(replica_id, stored=new - self._blocks[replica_id], removed=())
        self.update(replica_id, stored=(), removed=self._blocks[replica_id] - new)

    def update(self, replica_id: str, stored: Iterable[bytes], removed: Iterable[bytes]) -> None:
        """Events since the last report. Repeated and unknown ones are harmless."""
        bit, blocks, holders = self._bits[replica_id], self._blocks[replica_id], self._holders
        for block in removed:
            if block in blocks:
                blocks.remove(block)
                remaining = holders[block] & ~bit
                if remaining:
                    holders[block] = remaining
                else:
                    del holders[block]
        for block in stored:
            if block not in blocks:
                blocks.add(block)
                holders[block] = holders.get(block, 0) | bit

    def speculate(self, replica_id: str, packed: bytes, first_block: int, now: float) -> None:
        """A prompt was placed: its blocks from `first_block` on will be there soon."""
        self.expire(now)
        bit, young = self._bits[replica_id], self._young
        for start in range(first_block * HASH_BYTES, len(packed), HASH_BYTES):
            block = packed[start : start + HASH_BYTES]
            young[block] = young.get(block, 0) | bit

    def expire(self, now: float) -> None:
        """Drop guesses that are too old. Cheap: called before every read or write of guesses."""
        while now - self._rotated_at >= self._ttl_s:
            self._young, self._old = {}, self._young
            self._free += self._rested
            self._resting, self._rested = [], self._resting
            is_empty = not (self._old or self._resting or self._rested)
            self._rotated_at = (
                now if is_empty else max(self._rotated_at + self._ttl_s, now - self._ttl_s)
            )

    def num_blocks(self, replica_id: str) -> int:
        return len(self._blocks.get(replica_id, ()))

    def match(self, packed: bytes, now: float) -> dict[str, int]:
        """Leading blocks of the prompt that each replica holds; replicas without any are left out.

        `packed`: 16 bytes a block. O(log(blocks)) lookups per distinct match length.
        """
        self.expire(now)
        num_blocks = len(packed) // HASH_BYTES
        matched: dict[str, int] = {}
        depth, holders = 0, self._live
        while holders and depth < num_blocks:
            still = holders & self._holders_at(packed, depth)
            self._record(matched, holders & ~still, depth)
            holders = still
            if holders:
                depth = self._run_end(packed, depth + 1, num_blocks, holders)
        self._record(matched, holders, depth)
        return matched

    def _holders_at(self, packed: bytes, index: int) -> int:
        block = packed[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        guesses = self._young.get(block, 0) | self._old.get(block, 0)
        return self._holders.get(block, 0) | guesses

    def _run_end(self, packed: bytes, start: int, num_blocks: int, holders: int) -> int:
        """The first block from `start` on that not all of `holders` hold: galloping, then
        bisecting.
        """
        low, step = start, 1  # everything before `low` is held by all
        while low + step <= num_blocks and self._all_hold(packed, low + step - 1, holders):
            low, step = low + step, step * 2
        high = min(low + step - 1, num_blocks)  # the answer lies in [low, high]
        while low < high:
            middle = (low + high) // 2
            if self._all_hold(packed, middle, holders):
                low = middle + 1
            else:
                high = middle
        return low

    def _all_hold(self, packed: bytes, index: int, holders: int) -> bool:
        return holders & ~self._holders_at(packed, index) == 0

    def _record(self, matched: dict[str, int], replicas: int, depth: int) -> None:
        while depth and replicas:
            bit = replicas & -replicas
            matched[self._names[bit]] = depth
            replicas ^= bit
