"""Delivers the log of a generation to any number of subscribers: one reader of Redis, one framed buffer per dialect,
one write per subscriber and delivery.

Imports `store` and what is below it. Start with `hub.py`; `reader.py` is where events come in, `buffer.py` what
subscribers read from.
"""
