"""The settings of each probe: their ranges, defaults, and a tiny instance for tests."""
