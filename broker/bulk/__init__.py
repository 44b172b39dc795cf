"""Operations on many generations: batches, repetitions, groups. May import everything below `broker.py`, whose class
`Broker` inherits its methods. Begin with operations.py.
"""
