"""Timings go to whoever asked for them, and to nobody else."""

import threading
import time

from fid.runtime.timing import collect_timings, stage


def test_a_stage_that_runs_twice_is_summed_up_and_nobody_else_hears_of_it() -> None:
    with stage("before"):
        pass
    with collect_timings() as outer:
        with stage("a"):
            time.sleep(0.01)
        with collect_timings() as inner, stage("a"):
            time.sleep(0.01)
        thread = threading.Thread(target=lambda: stage("elsewhere").__enter__())
        thread.start()
        thread.join()
    with stage("after"):
        pass
    assert outer.keys() == inner.keys() == {"a"}
    assert outer["a"] >= inner["a"] + 9 > 18


def test_a_stage_that_fails_is_not_counted() -> None:
    with collect_timings() as timings:
        try:
            with stage("broken"):
                raise ValueError
        except ValueError:
            pass
    assert timings == {}
