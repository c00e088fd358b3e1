"""One graph on one engine: open it, run it, say truthfully what runs."""
