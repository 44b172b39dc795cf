"""Merges the streamed chunks of a chat completion into whole messages: a pure fold over the log, without I/O.

Imports only the vocabulary (`broker/*.py`). Start with `fold.py`; `merging.py` has the rules for the fields of a
message.
"""
