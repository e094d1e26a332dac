"""`tessella compare`: comparison of reports of `tessella evaluate`."""

from pathlib import Path

import click

from .options import json_option, one_clear_error, show


@click.command()
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option("--metric", help="Metric on the chart [FID of samples, PSNR of reconstructions].")
@click.option("--overwrite", is_flag=True, help="Replace a comparison of tessella's at --out.")
@json_option
@one_clear_error
def compare(
    reports: tuple[Path, ...], out: Path, metric: str | None, overwrite: bool, as_json: bool
) -> None:
    """Compare two or more REPORTS (folders of `tessella evaluate`) of one protocol."""
    from ..evaluation.report.compare import compare_reports, summary

    result = compare_reports(reports, out, metric=metric, overwrite=overwrite)
    show(result if as_json else summary(result) | {"written": str(out)}, as_json=as_json)
