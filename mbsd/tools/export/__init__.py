"""A run as a transformers folder, and as an ONNX graph."""
