import numpy as np
import pytest

from imagen_jax.text import token_batches


def test_buckets_hold_a_length_with_a_third_of_padding_at_most():
    sizes = {length: token_batches.bucket(length, 512) for length in range(1, 513)}
    assert sorted(set(sizes.values())) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(size >= length for length, size in sizes.items())
    assert all((size - length) / size <= 1 / 3 for length, size in sizes.items() if length > 16)
    assert token_batches.bucket(70, 77) == 77


def test_padding():
    ids, mask = token_batches.padded([[5, 6], [7]], 3, 9)
    np.testing.assert_array_equal(ids, [[5, 6, 9], [7, 9, 9]])
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 0, 0]])


def test_captions_are_embedded_in_order_of_length():
    ids = [[1] * length for length in (9, 1, 20, 2, 8)]
    shapes = []

    def embed(rows, length):
        shapes.append((len(rows), length))
        return np.full((len(rows) + 1, length, 2), [[[len(row)]] for row in [*rows, []]])  # one row too many

    found = list(token_batches.embed_sorted(embed, ids, batch_size=2, limit=48))
    assert [i for i, _ in found] == [1, 3, 4, 0, 2] and shapes == [(2, 8), (2, 16), (1, 24)]
    assert all(embedding.shape == (len(ids[i]), 2) and (embedding == len(ids[i])).all() for i, embedding in found)


def test_ids_that_do_not_fit_are_refused():
    ids = np.array([[0, 4]])
    token_batches.check(ids, ids, 5)
    for wrong, mask, message in (
        (np.array([[0, 5]]), ids, "input_ids must be from 0 to 4, the model's vocabulary; got 5"),
        (np.array([[0, -1]]), ids, "got -1"),
        (ids[0], ids[0], "input_ids must be an integer array"),
        (ids, ids[:, :1], "attention_mask have its shape; got shapes .1, 2. and .1, 1."),
        (ids.astype(float), ids, "dtype float64"),
        ([[0, 4]], ids, "dtype None"),
    ):
        with pytest.raises(ValueError, match=message):
            token_batches.check(wrong, mask, 5)
