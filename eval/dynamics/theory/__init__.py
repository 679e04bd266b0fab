"""Closed forms and differential equations of the probes: pure float64 functions, one module per probe."""
