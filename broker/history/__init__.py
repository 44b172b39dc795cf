"""What operators look at: the last two hours, minute by minute, and the subscribers of a generation at all gateways.

Each process adds up what it sees in memory and sends the sums to the queue's Redis every few seconds (`recorder`);
`reading` turns them into a record. `subscribers` lets gateways tell theirs while somebody asks. Imports the store,
Redis and the vocabulary.
"""
