"""What fid does with a user's own photos, on one page."""
