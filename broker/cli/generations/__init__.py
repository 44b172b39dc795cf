"""The commands about single generations: `enqueue`, `follow`, `ls`, `cancel`, … Imports its parent. Begin with
commands.py.
"""
