"""Training one stage: state, step, checkpoints and the loop."""
