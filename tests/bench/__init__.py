"""Benchmarks and their tools.

The package itself is `make bench`: its loads are in `subscriber_loads`, `worker_loads` and `memory`, its table in
`table`. Further programs: the cost of stalled readers (`stalled`), recovery times after failures (`recovery`), and
growth over time (`soak`). They use these tools, each in its own process, so that Python's event loop is not on either
side of the measurement:

- `native`: the load client, which counts every event of every subscriber, and the physical limit, a server in C that
  sends the same bytes without a backend. Both are compiled on first use into `.cache/bench`.
- `producing`: the producer, which emits events to a schedule or as a flood, through the product's own scripts or to a
  peer (`producer` is its process, `targets` the systems that it can write to).
- `systems`: one call that runs the same load on any of the systems.
- `peers`: the usual implementation of a gateway, and nginx with nchan.

    async with Subscribers(port, paths, 1000, events=500) as subscribers, Producer(...) as producer:
        await subscribers.ready()
        await producer.ready()
        producer.go()
        produced, received = await producer.result(), await subscribers.result()
"""
