"""NVIDIA's TensorRT and TensorRT-RTX: build engines, keep them in a private cache, run them."""
