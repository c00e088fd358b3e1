"""Geometry of faces in pictures: crop, align, detect, track, smooth, paste."""
