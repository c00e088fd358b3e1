"""Pictures, videos, cameras and windows: what comes in and what goes out."""
