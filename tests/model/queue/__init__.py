"""The queue's scripts under random schedules, with a clock that the test sets. Start with `machine.py`."""
