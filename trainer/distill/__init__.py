"""Distil smaller generators from a large one."""
