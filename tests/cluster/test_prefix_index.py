"""PrefixIndex against a plain model, and its costs."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.prefix_index import PrefixIndex
from protos.block_hash import BlockHash, pack
from tests.cluster.worlds import hashes

CHAINS = [hashes(12, seed) for seed in range(3)]
# Two more that share the first 5 blocks of the first chain.
CHAINS += [CHAINS[0][:5] + hashes(7, seed) for seed in (8, 9)]
TTL_S = 4.0


class IndexMachine(RuleBasedStateMachine):
    """Replicas hold whole prefixes, as engines that evict tails do; the model is a set per
    replica.
    """

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(TTL_S)
        self.depths: dict[str, dict[int, int]] = {}  # replica -> chain -> blocks held
        self.now = 0.0

    def held(self, replica: str) -> set[BlockHash]:
        chains = self.depths[replica]
        return {block for chain, depth in chains.items() for block in CHAINS[chain][:depth]}

    @rule(replica=st.sampled_from("abcdefgh"))
    def add_or_remove(self, replica: str) -> None:
        if self.depths.pop(replica, None) is None:
            self.index.add(replica)
            self.depths[replica] = {}
        else:
            self.index.remove(replica)
            self.index.remove(replica)

    @precondition(lambda self: self.depths)
    @rule(data=st.data(), chain=st.integers(0, 4), depth=st.integers(0, 12), full=st.booleans())
    def report(self, data: st.DataObject, chain: int, depth: int, full: bool) -> None:
        replica = data.draw(st.sampled_from(sorted(self.depths)))
        before = self.held(replica)
        if full:
            self.depths[replica] = {}
        self.depths[replica][chain] = depth
        after = self.held(replica)
        if full:
            self.index.replace(replica, after)
        else:
            self.index.update(replica, after - before, before - after)

    @invariant()
    def matches_are_exact(self) -> None:
        for chain in CHAINS:
            expected = {}
            for replica in self.depths:
                held = self.held(replica)
                depth = next((i for i, b in enumerate(chain) if b not in held), len(chain))
                if depth:
                    expected[replica] = depth
            assert self.index.match(pack(chain), self.now) == expected

    @invariant()
    def counts_are_exact(self) -> None:
        for replica in self.depths:
            assert self.index.num_blocks(replica) == len(self.held(replica))
        everything = {block for replica in self.depths for block in self.held(replica)}
        assert set(self.index._holders) == everything


TestIndexMachine = IndexMachine.TestCase


def test_speculation_bridges_until_the_report_and_expires() -> None:
    index, chain = PrefixIndex(TTL_S), hashes(8)
    index.add("a")
    index.update("a", chain[:3], ())
    index.speculate("a", pack(chain), 3, now=10.0)
    assert index.match(pack(chain), 10.0) == {"a": 8}
    assert index.match(pack(chain), 10.0 + TTL_S * 0.9) == {"a": 8}
    assert index.match(pack(chain), 10.0 + 2 * TTL_S) == {"a": 3}


def test_speculation_never_outlives_its_replica() -> None:
    index, chain = PrefixIndex(TTL_S), hashes(8)
    index.add("a")
    index.speculate("a", pack(chain), 0, now=0.0)
    index.remove("a")
    for name in "bcd":  # one of them may be given the bit that "a" had
        index.add(name)
        assert index.match(pack(chain), 0.1) == {}


def test_bits_are_used_again_after_their_rest() -> None:
    index, now = PrefixIndex(TTL_S), 0.0
    for _ in range(200):
        index.add("a")
        index.speculate("a", pack(hashes(1)), 0, now)
        index.remove("a")
        now += TTL_S
        index.expire(now)
    assert index._next_bit < 1 << 8


@given(st.lists(st.integers(0, 500), min_size=1, max_size=64))
def test_match_of_many_depths_is_exact(depths: list[int]) -> None:
    index = PrefixIndex()
    for replica, depth in enumerate(depths):
        index.add(str(replica))
        index.update(str(replica), LONG[:depth], ())
    expected = {str(replica): depth for replica, depth in enumerate(depths) if depth}
    assert index.match(PACKED, 0.0) == expected


LONG = hashes(500)
PACKED = pack(LONG)


def test_match_probes_few_depths_of_a_long_prompt() -> None:
    class Counting(PrefixIndex):
        probes = 0

        def _holders_at(self, packed: bytes, index: int) -> int:
            self.probes += 1
            return super()._holders_at(packed, index)

    index, chain = Counting(), hashes(8000)
    for replica in range(64):
        index.add(str(replica))
        index.update(str(replica), chain[: 8000 if replica % 2 else 5000], ())
    assert index.match(pack(chain), 0.0)["1"] == 8000
    assert index.probes < 80
