"""The background threads of a writer."""

from __future__ import annotations

import threading

import pytest

from arrowrb.engine.background import Background


def test_jobs_run_in_order_and_hand_over_errors():
    errors = []
    background = Background("test", lambda: None, None, errors.append)
    ran = []
    futures = [background.submit(lambda i=i: ran.append(i), awaited=True) for i in range(20)]
    failed = background.submit(lambda: 1 // 0, awaited=True)
    assert not any(future.done() for future in futures)  # its owner is not ready for them yet
    background.start()
    background.submit(lambda: {}["missing"], awaited=False)
    background.stop(30)
    assert all(future.done() for future in futures)
    assert ran == list(range(20))
    with pytest.raises(ZeroDivisionError):
        failed.result(30)
    assert [type(error) for error in errors] == [KeyError]


def test_a_stream_of_jobs_does_not_put_off_the_tick():
    ticks = threading.Semaphore(0)
    background = Background("test", ticks.release, 0.02, lambda error: None)
    background.start()
    stop = threading.Event()

    def submit():
        while not stop.is_set():
            background.submit(lambda: stop.wait(0.001), awaited=False).exception(30)

    busy = threading.Thread(target=submit)
    busy.start()
    try:
        for _ in range(3):
            assert ticks.acquire(timeout=30), "no tick beside a stream of jobs"
    finally:
        stop.set()
        busy.join(30)
        background.stop(30)
