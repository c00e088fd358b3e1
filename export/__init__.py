"""The exporter: PyTorch networks to a bundle of ONNX graphs. May import fid.trainer and fid.runtime."""
