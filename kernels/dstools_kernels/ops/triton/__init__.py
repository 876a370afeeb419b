"""Triton twins of the ops, for sm_90a: statically verified, never run on a GPU."""
