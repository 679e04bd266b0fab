"""Networks and data sets that several probes share, or that are too long for the module of their probe."""
