"""dixit: train a speaker to be understood by one listener and not by another."""

__version__ = "0.1.0"
