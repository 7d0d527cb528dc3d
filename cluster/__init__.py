"""Placement and lifecycle of replicas: a pure core, with Ray and gRPC in thin shells around it."""
