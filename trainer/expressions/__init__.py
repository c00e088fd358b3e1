"""Closed eyes, wide mouths, smiles and brows: directions in W, and what is taught by them."""
