"""`mbsd export`: a checkpoint as a transformers folder and as an ONNX graph."""
