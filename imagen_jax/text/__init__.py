"""Frozen text encoders: captions in, token embeddings out.

`encoder.TextEncoder` encodes captions, `cleaning` repairs them, `cache` keeps the embeddings of a data set,
`pretrained` finds and loads published weights and `tokenizer` what goes with them, `known` lists some, and `bert`,
`clip` and `t5` are the networks.
Importing these modules imports neither transformers nor torch.
"""
