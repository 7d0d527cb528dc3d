from cluster.rank_progress import RankProgress


def test_ranks_are_named_and_the_last_one_counts() -> None:
    progress = RankProgress(2)
    progress.update(0, "3 of 4 GiB", 0.75)
    assert progress.message == "rank 0: 3 of 4 GiB; rank 1: nothing yet"
    assert progress.fraction == 0.0
    progress.update(1, "1 of 4 GiB", 0.25)
    assert progress.message == "rank 0: 3 of 4 GiB; rank 1: 1 of 4 GiB"
    assert progress.fraction == 0.25


def test_single_rank_needs_no_name() -> None:
    progress = RankProgress(1)
    progress.update(0, "3 of 4 GiB", 0.75)
    assert (progress.message, progress.fraction) == ("3 of 4 GiB", 0.75)
