"""The PyTorch trainer: networks, losses and the training loops. May import fid.runtime."""
