"""From text to pictures: one stage, the cascade, and what they are given."""
