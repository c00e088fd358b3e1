"""Folders and archives of files: on one machine, on shards of a list, or on Ray."""
