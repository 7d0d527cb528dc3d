"""The usage log: every record once, whatever happens to the file."""

import json
import os
import threading
from pathlib import Path

import pytest

from gateway.usage import UsageLog, UsageRecord


def record(number: int) -> UsageRecord:
    return UsageRecord(
        time=1.5,
        request_id=f"r{number}",
        key="a",
        model="tiny",
        endpoint="/v1/chat/completions",
        stream=False,
        status=200,
        error=None,
        prompt_tokens=3,
        cached_tokens=1,
        completion_tokens=number,
        reasoning_tokens=0,
        abandoned_tokens=0,
        finish_reasons=("stop",),
        first_token_s=0.25,
        duration_s=0.5,
    )


def ids(path) -> list[str]:
    return [json.loads(line)["request_id"] for line in path.read_text().splitlines()]


def test_records_are_lines_in_order(tmp_path):
    path = tmp_path / "usage.jsonl"
    log = UsageLog(path)
    for number in range(2500):
        log.write(record(number))
    log.close()
    assert ids(path) == [f"r{number}" for number in range(2500)]
    assert json.loads(path.read_text().splitlines()[7]) == {
        "time": 1.5,
        "request_id": "r7",
        "key": "a",
        "model": "tiny",
        "endpoint": "/v1/chat/completions",
        "stream": False,
        "status": 200,
        "error": None,
        "prompt_tokens": 3,
        "cached_tokens": 1,
        "completion_tokens": 7,
        "reasoning_tokens": 0,
        "abandoned_tokens": 0,
        "finish_reasons": ["stop"],
        "first_token_s": 0.25,
        "duration_s": 0.5,
    }


def written(path, number: int) -> bool:
    return path.exists() and f"r{number}" in ids(path)


def wait_for(condition) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")


def test_a_file_that_was_moved_away_is_followed_by_a_new_one(tmp_path):
    path, old = tmp_path / "usage.jsonl", tmp_path / "usage.jsonl.1"
    log = UsageLog(path)
    log.write(record(1))
    wait_for(lambda: written(path, 1))
    os.rename(path, old)
    log.write(record(2))
    log.close()
    assert (ids(old), ids(path)) == (["r1"], ["r2"])


def test_two_logs_may_share_a_file(tmp_path):
    path = tmp_path / "usage.jsonl"
    logs = [UsageLog(path), UsageLog(path)]
    for number in range(500):
        logs[number % 2].write(record(number))
    for log in logs:
        log.close()
    assert sorted(ids(path)) == sorted(f"r{number}" for number in range(500))


def test_a_disk_that_refuses_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("gateway.usage._RETRY_S", 0.01)
    path = tmp_path / "folder" / "usage.jsonl"
    path.parent.mkdir()
    log = UsageLog(path)
    os.rename(path.parent, tmp_path / "gone")
    log.write(record(1))
    wait_for(lambda: "trying again" in caplog.text)
    os.rename(tmp_path / "gone", path.parent)
    log.close()
    assert ids(path) == ["r1"]


def test_what_comes_after_the_end_is_counted_as_lost(tmp_path):
    lost = []
    log = UsageLog(tmp_path / "usage.jsonl", lambda: lost.append(1))
    log.close()
    log.write(record(1))
    assert lost == [1]


def test_a_full_disk_does_not_hold_up_the_end_and_its_loss_is_told(caplog):
    lost = []
    log = UsageLog(Path("/dev/full"), lambda: lost.append(1))
    for number in range(3):
        log.write(record(number))
    log.close(timeout_s=0.5)
    assert lost == [1, 1, 1]
    assert "the last 3 records are lost" in caplog.text


def test_a_file_that_cannot_be_opened_is_refused_at_the_start(tmp_path):
    with pytest.raises(OSError):
        UsageLog(tmp_path / "no" / "folder" / "usage.jsonl")
