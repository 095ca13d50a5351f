"""Whether a stage fits devices that are not at hand, and how fast it should go there."""
