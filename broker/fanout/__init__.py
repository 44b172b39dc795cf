"""Deliver the log of a generation to any number of subscribers: one reader of Redis, one framed buffer per dialect, one
write per subscriber and delivery.

Imports `store` and the packages below it. Start with `hub.py`; `reader.py` receives the events, and subscribers read
from `buffer.py`.
"""
