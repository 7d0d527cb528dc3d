"""The OpenAI endpoint: HTTP and text in front, token ids over gRPC behind. No torch, no Ray."""

import os

# Before gRPC is loaded. Its handlers around fork() break one of ten child processes with a
# segmentation fault before exec, and the gateway's children (gateway/grammar_checker.py) need none.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
