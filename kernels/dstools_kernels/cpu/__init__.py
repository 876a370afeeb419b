"""The compiled CPU kernels, and their buffers."""
