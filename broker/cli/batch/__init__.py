"""The `batch` command: a file of requests in, a file of responses out, resumable. Imports its parent. Begin with
command.py.
"""
