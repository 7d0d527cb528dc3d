"""The OpenAI endpoint: HTTP and text in front, token ids over gRPC behind. No torch, no Ray."""

import os

# Before gRPC is loaded. Its handlers around fork() break one of ten child processes with a
# segmentation fault before exec, and the gateway's children (gateway/grammar_checker.py) need none.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Messages then come by the thread that waits for them, not by another one that wakes it: 100 us of
# CPU each instead of 160, and two changes of threads instead of five.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
