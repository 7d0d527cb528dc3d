"""The engine: which tokens to compute in which step. Standard library only."""
