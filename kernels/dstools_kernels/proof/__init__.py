"""Proofs about the Triton twins that need no GPU: interpretation, memory safety, compilation."""
