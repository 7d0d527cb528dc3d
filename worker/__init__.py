"""One tensor-parallel shard and, on rank 0, the engine that plans its steps."""
