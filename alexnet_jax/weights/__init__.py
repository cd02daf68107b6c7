"""Weights in files: safetensors and ONNX, written and read, and those of other libraries."""
