"""The last two hours, minute by minute: what was created, started and ended, first tokens, tokens, errors.

Each process adds up what it sees in memory and sends the sums to the queue's Redis every few seconds (`recorder`);
`reading` turns them into a record. Imports the store, Redis and the vocabulary.
"""
