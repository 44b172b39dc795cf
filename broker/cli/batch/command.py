"""The `batch` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click

from broker.cli.batch.bar import ProgressBar
from broker.cli.batch.requests import read_requests
from broker.cli.batch.results import Results
from broker.cli.batch.run import BatchRun
from broker.cli.options import FAILED, INTERRUPTED, examples, exit_when_stdout_closes, open_client


@click.command(
    short_help="Run a file of requests.",
    epilog=examples(
        "tokencast batch requests.jsonl -o results.jsonl",
        "tokencast batch requests.jsonl | wc -l",
    ),
)
@click.argument("file", type=click.File("rb"))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the results; results that it has are kept. Default: stdout.",
)
def batch(file: BinaryIO, output: Path | None) -> None:
    """Run the requests in FILE and write the results as they end, in the format of OpenAI's batches.

    A request is a line {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}, a result a line {"id",
    "custom_id", "response": {"status_code", "request_id", "body"}, "error"}, where request_id is the id of the
    generation. The generations have a common group, batch-HASH, which is made from the content of FILE.

    After Ctrl-C the generations continue. The same command resumes: no request is sent to a model twice, and each
    custom_id has one result. The exit code is 0 if all completed, 1 if some failed.
    """
    requests = read_requests(file.read())
    if output is None:
        exit_when_stdout_closes()
    bar = ProgressBar(len(requests.lines))
    with Results(output, requests) as results:
        try:
            client = open_client()  # never closed: at exit a thread may still be reading
            BatchRun(client, requests, results, bar).run()
        except KeyboardInterrupt:
            done = f"{len(results.done)} of {len(requests.lines)} done"
            bar.note(f"{done}; the generations continue; run the same command again to resume")
            sys.exit(INTERRUPTED)
        failed = sum(not completed for completed in results.done.values())
    if failed:
        bar.note(f"{failed} of {len(requests.lines)} failed; group: {requests.group}")
    sys.exit(FAILED if failed else 0)
