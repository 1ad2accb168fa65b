"""Finished runs in results/, for the figures to be drawn of them again."""

from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path("results")


def runs_of(experiment: str) -> list[Path]:
    """Folders of the finished runs of a module such as "experiments.evidence_accumulation".

    A run is finished when its summary is there, or all its metrics in one file.
    """
    folder = RESULTS / experiment.rpartition(".")[2]
    paths = [*folder.glob("*/summary.json"), *folder.glob("*/metrics.json")]
    return sorted({path.parent for path in paths})


def folders_of(experiment: str, arguments: Sequence[str]) -> list[Path]:
    """Those named, or those of all its finished runs; ends the program if there are none."""
    folders = [Path(argument) for argument in arguments] or runs_of(experiment)
    if not folders:
        raise SystemExit(missing(experiment))
    return folders


def missing(experiment: str) -> str:
    """What to say where there is no finished run."""
    folder = RESULTS / experiment.rpartition(".")[2]
    return f"no finished run in {folder}: make one with python -m {experiment}"


def draw_runs(
    draw: Callable[[Path], Path], experiments: Sequence[str], arguments: Sequence[str]
) -> None:
    """Draw the runs in the folders named, or else all finished ones, a figure for each."""
    if arguments:
        folders = [Path(argument) for argument in arguments]
    else:
        folders = [folder for experiment in experiments for folder in runs_of(experiment)]
    for folder in folders:
        try:
            print(draw(folder))
        except Exception as error:
            error.add_note(f"while drawing the run in {folder}")
            raise
    absent = [experiment for experiment in experiments if not runs_of(experiment)]
    if absent and not arguments:
        raise SystemExit("\n".join(map(missing, absent)))
