"""Threads that fetch and put away: in order, bounded, and without swallowing an error."""

import threading
import time
from contextlib import closing

import pytest

from hetecd.flow import ahead, behind


def ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hetecd-")]


def test_items_come_in_order_from_another_thread():
    threads = set()

    def numbers():
        for number in range(20):
            threads.add(threading.current_thread().name)
            yield number

    assert list(ahead(numbers())) == list(range(20))
    assert len(threads) == 1
    assert threading.current_thread().name not in threads
    assert list(ahead(iter(()))) == []


def test_no_more_is_fetched_than_the_depth():
    fetched = []

    def numbers():
        for number in range(20):
            fetched.append(number)
            yield number

    with closing(ahead(numbers(), depth=3)) as items:
        assert next(items) == 0
        time.sleep(0.05)
        assert len(fetched) == 4  # the one in hand, and three
    assert not ours()


def test_an_error_of_the_reader_comes_at_its_place():
    def numbers():
        yield 1
        raise ZeroDivisionError

    items = ahead(numbers())
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert not ours()


def test_all_is_put_away_in_order():
    done = []
    with behind(done.append) as put:
        for number in range(20):
            put(number)
    assert done == list(range(20))


def test_no_more_waits_than_the_depth():
    gate, done = threading.Event(), []

    def slow(number):
        gate.wait()
        done.append(number)

    with behind(slow, depth=2) as put:
        for number in range(3):
            put(number)
        late = threading.Thread(target=put, args=(3,))
        late.start()
        late.join(0.05)
        assert late.is_alive()
        gate.set()
        late.join()
    assert done == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 9])
def test_an_error_of_the_writer_is_raised(count):
    def fail(number):
        raise ZeroDivisionError

    def run():
        with behind(fail) as put:
            for number in range(count):
                put(number)

    with pytest.raises(ZeroDivisionError):
        run()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_whatever_ends_the_caller_ends_the_threads(stop):
    done = []

    def run():
        with closing(ahead(iter(range(100)))) as items, behind(done.append) as put:
            for item in items:
                put(item)
                if item == 30:
                    raise stop

    with pytest.raises(stop):
        run()
    assert not ours()
    assert done == list(range(31))  # what was taken is done
