"""Operations on many generations: batches, repetitions, endings, groups. May import everything below `broker.py`, whose
class `Broker` inherits its methods. Begin with operations.py.
"""
