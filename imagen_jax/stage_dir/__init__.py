"""A trained stage or cascade on disk: reading, checking, saving."""
