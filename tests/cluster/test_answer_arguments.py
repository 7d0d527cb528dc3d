"""What an operator says of answers reaches the gateways, and only that."""

import argparse

import pytest

from cluster.edge_arguments import add_edge_arguments, edge_options


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_edge_arguments(parser)
    return parser.parse_args(flags)


def test_parsers_are_handed_on_where_they_are_named() -> None:
    named = ("--tool-call-parser", "hermes", "--reasoning-parser", "none")
    flags = edge_options(parsed(*named, "--enable-auto-tool-choice")).gateway_flags()
    assert flags == ["--tool-call-parser=hermes", "--reasoning-parser=none"]
    assert edge_options(parsed()).gateway_flags() == []


@pytest.mark.parametrize("flag", ["--tool-call-parser", "--reasoning-parser"])
def test_unknown_parsers_are_refused_at_once(flag: str) -> None:
    with pytest.raises(SystemExit):
        parsed(flag, "nonsense")
