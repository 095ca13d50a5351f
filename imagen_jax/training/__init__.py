"""Training one stage: objectives, optimisers, state, step, loop and monitoring."""
