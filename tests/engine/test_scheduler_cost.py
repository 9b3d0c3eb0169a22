"""What planning and booking cost. Bounds are generous: machines are shared, and `bench/scheduler.py` has the numbers."""

from bench.scheduler import milliseconds_per_step


def test_a_step_of_256_sequences_is_cheap_whatever_their_length():
    short, long = (milliseconds_per_step(context, num_steps=40) for context in (32, 1024))
    assert short < 3
    assert long < 2 * short + 0.2
