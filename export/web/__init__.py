"""A bundle as a static site that computes in the visitor's browser. May import fid.runtime; needs no PyTorch."""
