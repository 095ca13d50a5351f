"""A lock in a bucket: one run has it, and another takes it over when that one gives no more signs of life."""

import threading

import pytest

from imagen_jax.storage import files, locations, locks


def names(url):
    from fsspec.core import url_to_fs

    fs, key = url_to_fs(url)
    return {path.removeprefix(key + "/") for path in fs.find(key)}


def quick(url):
    return locks.BucketLock(url, beat_s=0.1, stale_s=0.6, settle_s=0.05)


def test_one_of_several_runs_gets_the_lock(bucket):
    contenders = [quick(f"{bucket}/locks/many") for _ in range(6)]
    got = []
    threads = [threading.Thread(target=lambda each=each: got.append(each.acquire())) for each in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 5 + [True]
    for each in contenders:
        each.release()
    assert names(f"{bucket}/locks") == set()


def test_a_lock_is_refused_while_its_run_lives_and_taken_over_after(bucket):
    first, second = quick(f"{bucket}/locks/one"), quick(f"{bucket}/locks/one")
    assert first.acquire()
    assert not second.acquire()
    first.check()
    first._ended.set()  # killed: nothing is removed, and it gives no more signs
    first._thread.join()
    assert second.acquire()
    second.check()
    second.release()
    assert names(f"{bucket}/locks") == set()


def test_a_run_that_slept_too_long_notices_that_another_has_taken_its_lock(bucket):
    asleep, other = quick(f"{bucket}/locks/asleep"), quick(f"{bucket}/locks/asleep")
    assert asleep.acquire()
    asleep._guard.acquire()  # no beat comes through
    assert other.acquire()
    asleep._guard.release()
    with pytest.raises(OSError, match="another run has taken it"):
        asleep.check()
    asleep.release()  # and it does not remove what is the other's
    other.check()
    other.release()


@pytest.mark.parametrize(
    ("content", "holder"),
    [(b"", "an unknown process"), (b"[]", "an unknown process"), (b"{}", "an unknown process"),
     (b'{"process": 7, "host": "h"}', "process 7 of h")],
)  # fmt: skip
def test_a_lock_with_any_content_is_taken_over(bucket, content, holder, capsys):
    url = f"{bucket}/locks/any-{len(content)}"
    files.write(locations.location(url, ""), content)
    lock = quick(url)
    assert lock.acquire()
    assert holder in capsys.readouterr().err
    lock.release()
