"""Generations in the logs' Redis: keys, Lua scripts (`lua/`), creation, reading, listing, ending, and the checks of a
server before it is used.

Imports everything below it: vocabulary, `completion`, `concurrency`, `runtime`, `redis`, `settings`. Start with
`keys.py`, then `store.py`.
"""
