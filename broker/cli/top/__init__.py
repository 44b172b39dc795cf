"""The `top` command: a live table in a terminal. Imports its parent. Begin with command.py."""
