"""The page, the HTTP API and live video over WebRTC."""
