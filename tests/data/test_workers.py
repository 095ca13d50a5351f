"""Calls in worker processes."""

import pytest

from imagen_jax.data import workers


def test_each_call_has_its_number_and_its_result_or_error():
    done = dict(workers.run(divmod, {5: (7, 2), 6: (1, 0)}, 1))
    assert sorted(done) == [5, 6] and done[5].result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        done[6].result()
