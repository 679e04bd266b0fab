"""Learning dynamics: one module per published phenomenon, theory compared with simulation.

How to run, read and add probes: docs/dynamics.md. Results: eval/DYNAMICS.md.
"""
