"""Icon sets as npm publishes them, as captioned pictures in several styles."""
