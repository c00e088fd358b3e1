"""Train the attribute encoder and the mapper."""
