from worker.load_progress import LoadProgress
from worker.startup_events import StartupEvents

GIB = 1 << 30


def test_event_goes_out_once_a_second_with_the_rate() -> None:
    now_s = 10.0
    events = StartupEvents()
    progress = LoadProgress(events, "Weights", lambda: now_s)
    for quarter in range(1, 14):
        now_s = 10.0 + quarter / 4
        progress(quarter * GIB // 2, 13 * GIB // 2)
    told = [(e["phase"], e["message"], e["done"], e["fraction"]) for e in events.since(0)]
    assert told == [
        ("Weights", "2.00 of 6.50 GiB at 2.00 GiB/s", False, 4 / 13),
        ("Weights", "4.00 of 6.50 GiB at 2.00 GiB/s", False, 8 / 13),
        ("Weights", "6.00 of 6.50 GiB at 2.00 GiB/s", False, 12 / 13),
        ("Weights", "6.50 of 6.50 GiB at 2.00 GiB/s", False, 1.0),  # less than a second later
    ]
    assert progress.gib_per_s == 2.0


def test_quick_load_makes_no_event() -> None:
    now_s = 0.0
    events = StartupEvents()
    progress = LoadProgress(events, "Weights", lambda: now_s)
    now_s = 0.5
    progress(GIB, GIB)
    assert events.since(0) == [] and progress.gib_per_s == 2.0
