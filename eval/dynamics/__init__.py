"""Learning dynamics: one module per published phenomenon, theory laid over simulation. See DYNAMICS.md."""
