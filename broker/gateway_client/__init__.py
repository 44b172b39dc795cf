"""The HTTP client of the command line: requests to a gateway, and event streams that survive their connection.

Imports the vocabulary, `runtime` and `settings`. Start with `client.py`.
"""
