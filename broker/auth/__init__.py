"""Stream tokens: the right to read one generation for some minutes, for callers that cannot present an API key.

Imports `store` (the signing key is in Redis) and what is below it. Start with `stream_tokens.py`.
"""
