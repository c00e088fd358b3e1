"""Models on disk and from the network, and bundles of graphs."""
