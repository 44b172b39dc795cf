"""What waits and why, and the control over it: reasons and positions, pauses, limits of upstreams at run time.

May import everything below `broker.py`, whose class `Broker` inherits the methods of control.py. Begin with reasons.py.
"""
