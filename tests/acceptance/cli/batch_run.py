"""`tokencast batch FILE -o OUT` with another time between two looks: `python -m` with FILE, OUT and the seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from broker.cli.batch.bar import ProgressBar
from broker.cli.batch.requests import read_requests
from broker.cli.batch.results import Results
from broker.cli.batch.run import BatchRun
from broker.cli.options import open_client


def main(file: str, out: str, look_every: str) -> None:
    requests = read_requests(Path(file).read_bytes())
    with Results(Path(out), requests) as results:
        BatchRun(open_client(), requests, results, ProgressBar(len(requests.lines)), look_every=float(look_every)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
