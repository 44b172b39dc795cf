"""The native routes for many generations: batches, retries, endings, groups. May import what its parent may. Begin with
batch.py.
"""
