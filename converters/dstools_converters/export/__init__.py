"""A checkpoint as one ONNX graph, for ONNX Runtime, onnxruntime-genai and TensorRT."""
