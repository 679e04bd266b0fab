"""The training loop and what is trained with it: warm starts and the reference game."""
