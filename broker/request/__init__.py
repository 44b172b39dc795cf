"""Validation of what callers send: a chat.completions body, and our own options in its `tokencast` object.

Imports `errors`, `events` and the JSON helpers. Begin with `body.parse_request`.
"""
