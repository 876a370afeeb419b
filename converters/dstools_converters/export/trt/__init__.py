"""TensorRT: what of an exported folder it builds, checked on any machine, and engines of Hopper."""
