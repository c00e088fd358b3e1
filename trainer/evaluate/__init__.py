"""Measure trained networks: Tables 1 to 3 of the paper, photographs, clips, personalised people."""
