"""The native routes for many generations: batches, retries, groups. May import what its parent may. Begin with
batch.py.
"""
