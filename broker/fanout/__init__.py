"""Deliver the log of a generation to any number of subscribers: one reader of Redis, one framed buffer per dialect, one
write per subscriber and delivery.

Imports `store` and the rooms below it. Start with `hub.py`; events arrive in `reader.py`, and `buffer.py` is what
subscribers read from.
"""
