"""The `settings` command. It needs no gateway: it reads the environment as a process would."""

from __future__ import annotations

import click

from broker.cli.options import USAGE, examples, json_line
from broker.cli.tables import one_line, table
from broker.settings.inspection.report import Process, SettingsReport, report_settings


@click.command(
    "settings",
    short_help="Show the settings in force, and check them.",
    epilog=examples("tokencast settings", "tokencast settings --for api", "tokencast settings --json"),
)
@click.option(
    "--for",
    "process",
    type=click.Choice(("api", "worker")),
    help="Also check what this kind of process requires.",
)
@click.option("--json", "as_json", is_flag=True, help='One line of JSON: {"settings", "problems", "warnings"}.')
@click.pass_context
def settings(context: click.Context, process: Process | None, as_json: bool) -> None:
    """Show every setting with its value in force and its source: `default`, `environment`, or the variable that names
    its file. Secrets are masked.

    Problems, with which no process starts, and names that are not settings are printed on stderr. With problems the
    exit code is 2.
    """
    report = report_settings(process)
    if as_json:
        listed = [row._asdict() for row in report.settings]
        click.echo(json_line({"settings": listed, "problems": report.problems, "warnings": report.warnings}))
    else:
        _print(report)
    if report.problems:
        context.exit(USAGE)


def _print(report: SettingsReport) -> None:
    for line in table([("NAME", "VALUE", "SOURCE"), *(tuple(row) for row in report.settings)]):
        click.echo(line)
    for problem in report.problems:
        click.echo(f"tokencast: {one_line(problem)}", err=True)
    for warning in report.warnings:
        click.echo(f"tokencast: warning: {one_line(warning)}", err=True)
