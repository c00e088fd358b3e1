"""Generated faces to learn from, their statistics, and how they are varied."""
