"""Event streams without I/O: decoding, positions, reconnects, and the text in the events. Imports the records and the
decisions of its parent. Start with `stream.py`.
"""
