"""Tokencast's own protocol: `/v1/generations`, its event stream, paced replay, several generations on one connection,
and the activity of a tenant.

Start with `routes.py`; `frames.py` has the wire format.
"""
