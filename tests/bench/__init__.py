"""Measurements, and what they are made with.

The measurements are modules to run: what the broker adds (`latency`), what stalled readers cost (`stalled`), how long
a failure is felt (`recovery`). Those with many subscribers stand on these tools, each a process of its own, so that
Python's event loop is on neither side of what is measured:

- `native`: the load client, which counts every event of every subscriber, and the physical limit, a server in C that
  sends the same bytes with nothing behind it. Compiled on first use, into `.cache/bench`.
- `producing`: the producer, which emits events to a schedule or as a flood, through the product's own scripts or to a
  peer (`producer` is its process, `targets` are what it can write into).
- `peers`: the gateway as it is usually written, and nginx with nchan.

    async with Subscribers(port, paths, 1000, events=500) as subscribers, Producer(...) as producer:
        await subscribers.ready()
        await producer.ready()
        producer.go()
        produced, received = await producer.result(), await subscribers.result()
"""
