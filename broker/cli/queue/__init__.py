"""The commands about the queue: `queue`, `pause`, `resume`, `upstreams`, `retry`. Imports its parent. Begin with
queue.py.
"""
