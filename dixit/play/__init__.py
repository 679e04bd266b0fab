"""Dixit as a card game: rules, agents, the terminal and the browser."""
