"""Generating: the decoder on paged caches, and the loop that draws tokens with it."""
