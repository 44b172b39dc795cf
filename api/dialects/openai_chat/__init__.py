"""OpenAI's chat completions: the stock SDKs need only another `base_url` and key.

Start with `routes.py`; `frames.py` has the wire format.
"""
