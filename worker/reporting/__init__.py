"""What a worker reports of single attempts and calls: its log lines, and the spans of calls.

Imports `broker`, and of the worker `upstream`, `claims` and `attempt`. Start with `log_lines.py`.
"""
