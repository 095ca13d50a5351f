"""Estimates of a stage's memory and speed on devices that need not be attached."""
