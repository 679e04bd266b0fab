"""Learning dynamics on the real speaker: one measurement for each probe of eval.dynamics."""
