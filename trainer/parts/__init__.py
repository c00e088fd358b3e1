"""Parts of a head: labels from the generator's own activations, and the small network that is taught them."""
