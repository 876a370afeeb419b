"""Tensor maths of the DeepSeek formats, from buffers to buffers; no files, no models."""
