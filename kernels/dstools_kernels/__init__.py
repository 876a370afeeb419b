"""Tensor maths of the DeepSeek formats: buffers and arrays in, buffers and arrays out; no files, no models."""
