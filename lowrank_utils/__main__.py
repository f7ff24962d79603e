"""The command line: ``python -m lowrank_utils --help`` says it all."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run the notebooks of the low-rank workbook, fetch its data, gather its results.",
)


@app.command()
def run(
    name: Annotated[str | None, typer.Argument(metavar="RUN", help="With --resume: which run.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NOTEBOOK", help="A notebook, such as 02 or 02_arsvd; repeatable."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A preset of notebooks/presets, or a YAML file.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter; repeatable.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1,2", help="Run everything once for each seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with RUN, or the newest unfinished run.")] = False,
    output_folder: Annotated[str | None, typer.Option(metavar="FOLDER", help="Instead of outputs/runs.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Notebooks executed at once; else two, where there are two cores.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Execute the notebooks into a folder of their own below outputs/runs.

    Two are executed at once, the last one first, each on half of the cores. With --workers 1 they are executed in their
    order, with a bar for the cells of each. Parameters come from the notebooks' defaults, then the preset, then --set.
    """
    from dask.system import CPU_COUNT

    from lowrank_utils.workbook import jobs as listing
    from lowrank_utils.workbook import runs

    if resume:
        if only or preset or set_ or seeds:
            raise ValueError("--resume goes on with what the run was asked for; it takes no other parameters")
        place, request, jobs, changed = runs.resume(name, output_folder)
        done = sum(runs.is_done(job, place) for job in jobs)
        typer.echo(f"resuming {place.name}: {done} of {len(jobs)} notebooks are finished")
        for notebook in changed:
            typer.echo(f"{notebook} has changed since this run began, so it runs again")
    else:
        if name:
            raise ValueError(
                f"{name!r} is not an option of run: use --only {name} for one notebook, --resume for a run"
            )
        request = {
            "only": list(listing.select(only or [])),
            "preset": listing.read_preset(preset) if preset else {},
            "settings": listing.read_settings(set_ or []),
            "seeds": _whole_numbers(seeds),
        }
        jobs, place = listing.list_jobs(**request), None
    try:
        at_once = workers or min(2, CPU_COUNT)
        place = runs.run(jobs, request, output_folder, progress=not quiet, into=place, workers=at_once)
    except KeyboardInterrupt as stop:
        typer.echo(f"interrupted; {stop}" if stop.args else "interrupted; nothing was started", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{len(jobs)} executed notebook{'s' * (len(jobs) > 1)}: {_short(place)}")


@app.command()
def sweep(
    notebook: Annotated[str, typer.Argument(help="Such as notebooks/02_arsvd.ipynb or 02.")],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=V,V,...", help="More parameters of the grid.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=V,V,...", help="A parameter and its values, or a YAML file of them; repeatable."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A preset, for the parameters outside the grid.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Instead of outputs/sweeps/NOTEBOOK: a folder, or an fsspec address such as s3://bucket/sweep.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers on this machine; else as many as its cores feed.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that each notebook computes with.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running Dask scheduler, such as tcp://host:8786.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run the failed cells again.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Run a notebook over a grid of parameters, as in: sweep 02 --grid threshold=0.8,0.9 seed=0,1,2

    Each cell of the grid is a run at an address made from its parameters, so the same command again, or one
    with more values, does only what is missing. Rows of all cells, and their means over seeds, are put
    together in results and summary (.csv and .parquet), and the figures of notebooks 02 to 06 are drawn from them.
    The tables hold the cells of the grid that was asked for last.
    """
    from lowrank_utils.workbook import sweeps

    if workers and scheduler:
        raise ValueError("--workers is for a cluster on this machine; with --scheduler, start workers there")
    planned, request = sweeps.list_sweep_jobs(notebook, sweeps.read_grid([*(grid or []), *(values or [])]), preset)
    try:
        place, done, failed = sweeps.run(planned, request, to, workers, threads, scheduler, retry, not quiet)
    except KeyboardInterrupt:
        typer.echo("interrupted; go on with the same command", err=True)
        raise typer.Exit(130) from None
    where = _short(Path(place)) if Path(place).is_dir() else place
    typer.echo(f"{len(done)} of {len(planned)} cells are done: {where}")
    if others := len(list(Path(place).glob("*/done.json"))) - len(done):  # none at an address elsewhere
        typer.echo(f"{others} other cells lie there that this grid does not name; they are not in its tables")
    if failed:
        for address, error in failed.items():
            typer.echo(f"{address}: {error}", err=True)
        typer.echo(f"error: {len(failed)} of {len(planned)} cells failed; to run them again, add --retry", err=True)
        raise typer.Exit(1)


@app.command()
def parameters(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Such as 02 or 02_arsvd.")] = None,
) -> None:
    """Show the parameters of the notebooks: name, type, default and meaning."""
    from lowrank_utils.workbook import jobs

    for name, path in jobs.select(notebooks or []).items():
        typer.echo(name)
        for parameter, (kind, default, text) in jobs.inspect(path).items():
            typer.echo(f"  {f'{parameter}: {kind} = {default!r}':<42} {text}")


@app.command()
def refresh(
    notebooks: Annotated[
        list[str] | None,
        typer.Argument(metavar="NOTEBOOK", help="A file, or a number such as 02; none: all, with solutions."),
    ] = None,
) -> None:
    """Execute notebooks in place at their defaults, before they are committed."""
    from lowrank_utils import paths
    from lowrank_utils.workbook import jobs, runs

    everything = [*sorted(paths.NOTEBOOKS.glob("*.ipynb")), *sorted(paths.SOLUTIONS.glob("*.ipynb"))]
    for path in jobs.files_of(notebooks) if notebooks else everything:
        typer.echo(_short(path))
        runs.refresh(path)


@app.command()
def twins(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; say which are out of step.")] = False,
) -> None:
    """Write each notebook once more as Markdown in notebooks/text, without outputs, for reviews of prose."""
    from lowrank_utils.workbook import twins as texts

    for path in texts.stale() if check else texts.write():
        typer.echo(f"{'out of step' if check else 'written' if path.exists() else 'removed'}: {_short(path)}")
    if check and texts.stale():
        typer.echo("error: text twins differ from their notebooks; run python -m lowrank_utils twins", err=True)
        raise typer.Exit(1)


@app.command()
def front(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say what no longer agrees with the rows.")
    ] = False,
) -> None:
    """Write the numbers, tables and pictures of the README and of docs from the published rows."""
    from lowrank_utils.workbook import front as page

    changed = page.stale() if check else page.write()
    for path in changed:
        typer.echo(f"{'out of step' if check else 'written'}: {_short(path)}")
    if check and changed:
        typer.echo("error: pages differ from the rows; run python -m lowrank_utils front", err=True)
        raise typer.Exit(1)


@app.command()
def links(
    repository: Annotated[
        str | None, typer.Argument(metavar="OWNER/NAME", help="A copy on GitHub; none: take the badges out.")
    ] = None,
    branch: Annotated[str, typer.Option(metavar="NAME", help="The branch that the badges open.")] = "main",
) -> None:
    """Write Colab and Binder badges into the README and every notebook, and the cell that installs the package on Colab."""
    from lowrank_utils.workbook import links as badges
    from lowrank_utils.workbook import twins as texts

    for path in [*badges.write(repository, branch), *texts.write()]:
        typer.echo(f"written: {_short(path)}")


@app.command()
def data(
    name: Annotated[
        str,
        typer.Argument(
            help="Images: fashion-mnist, mnist, cifar10, cifar100, digits, imagenet-sample or folder:PATH. Text: wikitext-2, "
            "python-topics, file:PATH or stsbenchmark. A network: smollm2-135m, efficientnet-lite0 or all-minilm-l6-v2."
        ),
    ],
) -> None:
    """Fetch a data set, a text or a trained network, check it and show its shape or size and its fingerprint."""
    from lowrank_utils.lab import data, text

    if text.is_text(name):
        typer.echo(text.describe(name))
    elif name in data.NAMES or name.startswith("folder:"):
        typer.echo(data.describe(name))
    else:
        # with torch, which the others need not wait for
        from lowrank_utils.lab import efficientnet, encoder, language, sentences

        others = dict.fromkeys(language.NAMES, language.describe)
        others |= {each.NAME: each.describe for each in (efficientnet, encoder, sentences)}
        if name not in others:
            known = ", ".join((*data.NAMES, "folder:PATH", *text.NAMES, "file:PATH", *others))
            raise ValueError(f"unknown data set {name!r}: choose {known}")
        typer.echo(others[name](name))
        if name in language.NAMES:
            language.prepare(name)


@app.command()
def report(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Names or folders of runs; none: the newest.")
    ] = None,
    gallery: Annotated[bool, typer.Option("--gallery", help="Put these runs into outputs/gallery.")] = False,
    site: Annotated[
        bool,
        typer.Option(
            "--site",
            help="Build the pages of notebooks and gallery; the notebooks of RUN, if one is named, stand in their place.",
        ),
    ] = False,
    to: Annotated[str | None, typer.Option(metavar="FOLDER", help="With --site: instead of outputs/site.")] = None,
) -> None:
    """Show the results of runs (or sweeps) as a table; with --gallery publish them; with --site build the pages."""
    from lowrank_utils.lab.columns import LANGUAGE_COLUMNS, RESULT_COLUMNS
    from lowrank_utils.workbook import gallery as published
    from lowrank_utils.workbook import runs

    if to and not site:
        raise ValueError("--to says where --site builds its pages; add --site")
    if site:
        from lowrank_utils.workbook import site as pages

        if gallery or len(names or []) > 1:
            raise ValueError("--site shows one run at most, and publishes none: leave --gallery for a call of its own")
        typer.echo(f"the site begins at {_short(pages.build(names[0] if names else None, to))}")
        return
    places = [runs.find_run(name) for name in names] if names else runs.all_runs()[-1:]
    if not places:
        raise runs.RunError("there is no run yet; start one with: python -m lowrank_utils run")
    table = published.gather(*places)
    if (setting := published.settings(table)).any():
        table.insert(4, "setting", setting)
    shown = [c for c in (*RESULT_COLUMNS[:4], "setting", *RESULT_COLUMNS[4:], *LANGUAGE_COLUMNS) if c in table]
    shown = [c for c in shown if table[c].notna().any()]
    typer.echo(table[shown].to_string(index=False) if len(table) else "no results yet")
    if gallery:
        for path in published.publish(*places):
            typer.echo(f"published {_short(path)}")


@app.command()
def gallery(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="More names for --only.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Jobs whose names begin so, such as 05 or language; repeatable."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the jobs with expected minutes, and run none.")] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="Measure rows again that are there, of older code too.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers; else as many as the cores feed.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Measure every published number whose rows are not there, and write rows, pages, pictures and the claim table of the gallery.

    Each finished job leaves its rows in outputs/gallery/jobs at once: the same command goes on from there, in any clone.
    """
    from lowrank_utils.workbook import night

    if names and not only:
        raise ValueError(f"{names[0]!r} is not an option of gallery: use --only {names[0]}")
    chosen = [*(only or []), *(names or [])]
    if list_:
        typer.echo(night.listing(night.selected(night.planned(), chosen), workers or 2))
        return
    try:
        done, failed = night.run(chosen, renew=renew, workers=workers, progress=not quiet)
    except KeyboardInterrupt:
        typer.echo("interrupted; go on with the same command", err=True)
        raise typer.Exit(130) from None
    typer.echo(
        f"{len(done)} job{'s' * (len(done) != 1)} done" if done or failed else "nothing to do: all rows are there"
    )
    if failed:
        for name, error in failed.items():
            typer.echo(f"{name}: {error}", err=True)
        typer.echo(
            f"error: {len(failed)} of {len(done) + len(failed)} jobs failed; the same command tries them again",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
def audit() -> None:
    """Judge every published table and claim by seven rules of fair comparison; exit code 1 where one is broken without a reason."""
    from lowrank_utils.workbook import audit as rules

    found = rules.findings()
    typer.echo(f"{rules.card(found)}\n\n{rules.summary(found)}")
    broken = [one for one in found if one.broken]
    for one in broken:
        typer.echo(f"{one.subject}: breaks rule {one.rule}, {rules.RULES[one.rule]}: {one.problem}", err=True)
    if broken:
        typer.echo("error: keep these rules, or write the reason into UNMET of the chapter", err=True)
        raise typer.Exit(1)


@app.command()
def publish_checkpoint(dataset: str, network: str, seed: Annotated[int, typer.Option(min=0)] = 0) -> None:
    """Train a network by the published recipe and write its checkpoint to data/checkpoints.

    It is stored in half precision where that changes no rank.
    """
    from lowrank_utils.lab import data, training
    from lowrank_utils.ranks import rules

    images = data.load(dataset, seed=seed)
    path = training.publish(images, network, seed, same=lambda a, b: rules.same_ranks(a, b, images.input_shape))
    typer.echo(f"wrote {_short(path)}")


def _whole_numbers(text):
    try:
        numbers = [int(word) for word in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"--seeds {text!r} is not a list of whole numbers such as 0,1,2") from None
    return numbers


def _short(path):
    from lowrank_utils import paths

    return path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path


def main() -> None:
    """Run the command line; an expected failure becomes one sentence on stderr and exit code 1, 2 or 130."""
    from lowrank_utils.workbook.runs import NotebookFailed, RunError

    try:
        app()
    except NotebookFailed as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except (ValueError, OSError, RunError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
