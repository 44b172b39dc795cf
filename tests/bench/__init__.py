"""Measurements, and what they are made with.

The package itself is `make bench`: its loads are in `reading`, `working` and `memory`, its table in `table`. Modules to
run beside it: what stalled readers cost (`stalled`), how long a failure is felt (`recovery`), whether anything grows
(`soak`). They stand on these tools, each a process of its own, so that Python's event loop is on neither side of what
is measured:

- `native`: the load client, which counts every event of every subscriber, and the physical limit, a server in C that
  sends the same bytes with nothing behind it. Compiled on first use, into `.cache/bench`.
- `producing`: the producer, which emits events to a schedule or as a flood, through the product's own scripts or to a
  peer (`producer` is its process, `targets` are what it can write into).
- `systems`: the same load on any of them, as one call.
- `peers`: the gateway as it is usually written, and nginx with nchan.

    async with Subscribers(port, paths, 1000, events=500) as subscribers, Producer(...) as producer:
        await subscribers.ready()
        await producer.ready()
        producer.go()
        produced, received = await producer.result(), await subscribers.result()
"""
