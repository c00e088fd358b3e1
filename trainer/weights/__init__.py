"""Weights on disk: checkpoints, trained networks, bundles and generators of other makers."""
