"""How good samples are: distance to real images, and faithfulness to their captions."""
