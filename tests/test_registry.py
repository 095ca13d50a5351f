import pytest

from imagen_jax.registry import Registry


def test_entries_by_name():
    numbers = Registry("number")

    @numbers.register("one")
    class One:
        pass

    assert numbers["one"] is One and list(numbers) == ["one"] and "two" not in numbers and len(numbers) == 1
    assert numbers.name_of(One) == numbers.name_of(One()) == "one"
    with pytest.raises(ValueError, match="number must be .*one.*; got 'two'"):
        numbers["two"]
    with pytest.raises(ValueError, match="name must be a new name of a number, other than one; got 'one'"):
        numbers.register("one")(int)
    again = type("One", (), {"__module__": One.__module__, "__qualname__": One.__qualname__})
    assert numbers.register("one")(again) is numbers["one"] is again
    with pytest.raises(ValueError, match="number must be a registered number"):
        numbers.name_of(int)
