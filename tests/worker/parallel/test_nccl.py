"""Collectives between cards: what they compute, and that captured steps may contain them."""

from multiprocessing.queues import Queue
from typing import Any

import pytest
import torch

from tests.worker.parallel.ranks import ranks
from worker.parallel import rendezvous

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def capture(rank: int, size: int, address: str, report: "Queue[Any]") -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    group = rendezvous.connect_group(rank, size, address, device, 30.0)
    x = torch.full((5, 8), float(rank + 1), device=device)
    ids = torch.full((3,), rank, device=device)

    def run() -> list[torch.Tensor]:
        return [
            group.all_reduce(x.clone()),
            group.all_gather(x[:, :2]),
            group.broadcast(ids.clone()),
        ]

    plain = [out.clone() for out in run()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        captured = run()
    for factor in (1, 3):
        x.fill_(factor * (rank + 1))
        graph.replay()
        torch.cuda.synchronize()
        report.put([out.tolist() for out in captured])
    report.put([out.tolist() for out in plain])
    group.min_int(0)
    group.close()


def test_collectives_are_captured_with_the_step() -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    with ranks(capture, 0, 2, 2, address) as group:
        for rank in range(2):
            once, thrice, plain = [group.report(rank) for _ in range(3)]
            assert once == plain
            assert once[0] == [[3.0] * 8] * 5
            assert once[1] == [[1.0, 1.0, 2.0, 2.0]] * 5
            assert once[2] == [0, 0, 0]
            assert thrice[0] == [[9.0] * 8] * 5
