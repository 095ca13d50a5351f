"""Frozen text encoders: captions in, token embeddings out.

`encoder.TextEncoder` encodes captions with published models; `encoders` says what any encoder must have. `cache` keeps
the embeddings of a data set. `pretrained` finds published models, `families`, `weights` and `tokenizer` load them,
`known` lists some, and `bert`, `clip` and `t5` are the networks. Importing these modules imports neither transformers
nor torch.
"""
