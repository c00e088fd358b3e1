"""The command line: options, progress bars, and what the commands say."""
