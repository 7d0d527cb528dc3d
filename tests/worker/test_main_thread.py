"""A process's main thread yields, its other threads do not; in a process of its own, since nobody
may take it back.
"""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")

PROGRAM = """
import json, os, threading
from worker.main_thread import yield_main_thread

def niceness(thread_id):
    return os.getpriority(os.PRIO_PROCESS, thread_id)

def in_new_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

seen = {"start": niceness(os.getpid())}
yield_main_thread()  # by the main thread itself: its threads would inherit it
seen["still"] = niceness(os.getpid())

def other():
    yield_main_thread()
    seen["main"] = niceness(os.getpid())
    seen["caller"] = niceness(threading.get_native_id())
    def note():
        seen["later"] = niceness(threading.get_native_id())
    in_new_thread(note)

in_new_thread(other)
print(json.dumps(seen))
"""


def test_only_the_main_thread_yields() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    seen = json.loads(run.stdout)
    usual = seen["start"]
    assert seen == {"start": usual, "still": usual, "main": 19, "caller": usual, "later": usual}
