"""Stream tokens: permission to read one generation for some minutes, for clients that cannot send an API key.

Imports `store` (the signing key is in Redis) and what is below it. Start with `stream_tokens.py`.
"""
