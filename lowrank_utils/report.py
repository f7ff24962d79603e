"""Gathers results over runs, and keeps the gallery: the notebooks and rows behind the published numbers."""

import base64
import io
import json
import re
import tempfile
from pathlib import Path

from lowrank_utils import paths, results, runs

KEY = ["notebook", "dataset", "network", "seed", "draw"]  # a gallery holds one job for each of these
# Where programs keep what belongs to one machine; not matched inside a web address, where a word goes before.
MACHINE = re.compile(
    r"(?<![\w.:/~-])/(?:home|Users|root|tmp|private|mnt|media|opt|srv|work|workspace|var|usr/(?:local|lib))"
    r"/[\w.~-]+"
    r"|\b[A-Z]:\\+Users\\+\w+"
)


def gather(*run_folders):
    """Return the rows of all finished jobs of the given runs, with provenance columns, as a DataFrame.

    Columns: those of `results.RESULT_COLUMNS`, what the notebooks add, then `results.PROVENANCE_COLUMNS`.
    Raises RunError for a folder that is no run.
    """
    places = [runs.find_run(place) for place in run_folders]
    return results.typed(
        results.joined([results.job_rows(folder) for place in places for folder in runs.finished(place)])
    )


def gallery(dataset=None, notebook=None, network=None, folder=None):
    """Return the published rows as a DataFrame, of one data set, notebook or network if asked for.

    Where nothing is published the table is empty and has its columns. `folder` defaults to outputs/gallery.
    """
    table = results.typed(_published(folder or paths.GALLERY))
    for column, wanted in (("dataset", dataset), ("notebook", notebook), ("network", network)):
        if wanted is not None:
            table = table[table[column] == wanted]
    return table.reset_index(drop=True)


def _published(folder):
    import pandas as pd

    path = Path(folder) / "results.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()
    return results.joined([table])


def publish(*run_folders, folder=None):
    """Put the finished jobs of the given runs into the gallery; return the paths of the notebooks put there.

    Each executed notebook becomes NOTEBOOK-DATASET-NETWORK-seedN.ipynb (and -drawN), without what it wrote to stderr;
    its rows in results.csv take the place of the rows of the same notebook, data set, network, seed and draw. `folder`
    defaults to outputs/gallery, for which the tables of the README are renewed too. Raises RunError, before anything is written, for an unfinished run, a
    notebook that holds an error or a path of this machine, and two jobs that would have the same name.
    """
    import nbformat

    from lowrank_utils import plots

    folder = Path(folder or paths.GALLERY)
    ready, tables = {}, []
    for place in [runs.find_run(place) for place in run_folders]:
        if not runs.is_complete(place):
            raise runs.RunError(
                f"run {place.name} is not complete; finish it first with run --resume {place.name}"
            )
        for job in runs.finished(place):
            label = results.read_done(job)["label"]
            if label in ready:
                raise runs.RunError(f"two of these jobs would be published as {label}; publish one of them")
            ready[label] = _clean(job / "notebook.ipynb", label)
            tables.append(results.job_rows(job))
    for label, notebook in ready.items():
        with paths.whole(folder / f"{label}.ipynb") as temporary:
            nbformat.write(notebook, temporary)
    table = _merged(_published(folder), results.joined(tables))
    with paths.whole(folder / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    told = summary(folder)
    with paths.whole(folder / "README.md") as temporary:
        temporary.write_text(_page(told))
    shown = gallery("fashion-mnist", "02_arsvd", "lenet300", folder)
    pictures = {}
    if len(shown):
        plain = shown[shown["factors"].isin(["svd", "dense"])]
        pictures["arsvd"] = plots.rules(plain, f"{shown['seed'].nunique()} seeds")
    pictures |= {"side-by-side": figure for figure in figures(gallery(notebook="06_side_by_side", folder=folder)).values()}
    for name, figure in pictures.items():
        with paths.whole(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png")
    front = paths.ROOT / "README.md"
    if folder == paths.GALLERY and front.is_file():
        with paths.whole(front) as temporary:
            temporary.write_text(quote(front.read_text(), told))
    return [folder / f"{label}.ipynb" for label in ready]


def figures(table):
    """Return {name: matplotlib Figure} of all that notebooks 02 to 06 draw from result rows: accuracy against size.

    `table`: rows of any number of notebooks, data sets, networks and seeds, as `gather` and `gallery` return them or a
    sweep's results.parquet holds them. Means over runs that differ in seed and draw alone, with a band from the lowest to
    the highest; where runs differ in more, each setting has a figure of its own, which names it. What no row supports is
    left out.
    """
    from lowrank_utils import plots

    needed = "notebook dataset network seed chooser factors scope target way accuracy parameters_kept macs_kept bytes faster_64"
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *needed.split()])))
    table = table[table[["notebook", "chooser", "target", "accuracy"]].notna().all(axis=1)]
    table = table.assign(target=table["target"].astype(str), setting=settings(table))
    sized, shared = table["target"].str.match("kept|own|epsilon"), table["target"].str.match("macs")
    draw = {
        "02_arsvd": (plots.rules, sized & table["scope"].notna()),
        "03_entropy_pruning": (plots.rankings, sized & table["factors"].isin(plots.FORMS)),
        "04_ddlr": (plots.programs, sized),
        "02b_convolutions": (plots.by_work, shared),
        "05_rank_search": (plots.choosers, shared),
        "06_side_by_side": (plots.trade_off, table["bytes"].notna() & table["way"].notna()),
    }
    drawn = {}
    for notebook, (tell, usable) in draw.items():
        dense = table["chooser"] == "dense"
        mine = table[(table["notebook"] == notebook) & (usable | dense)]
        one_each = notebook in ("02_arsvd", "03_entropy_pruning", "04_ddlr")
        by = ["dataset", "network", "setting"] if one_each else ["setting"]
        for key, part in mine.groupby(by):
            cut = part[part["chooser"] != "dense"]
            seeds = part["seed"].nunique()
            if notebook == "04_ddlr":
                cut = plots.in_every_seed(cut, seeds)
            if not len(cut):
                continue
            name = "-".join(_slug(word) for word in (notebook, *key) if word)
            if one_each:
                drawn[name] = tell(part, f"{seeds} seed{'s' * (seeds > 1)}")
                drawn[name].suptitle(" · ".join(word for word in key if word))
            else:
                drawn[name] = tell(part)
    return drawn


def settings(table):
    """Return a Series: for each row, in words, the parameters in which runs of one notebook, data set and network differ.

    Read from the column run_parameters; seed, draw and device do not count. "" where they do not differ.
    """
    import pandas as pd

    given = table["run_parameters"] if "run_parameters" in table else pd.Series("{}", table.index)
    given = given.fillna("{}").map(json.loads)
    words = pd.Series("", table.index)
    apart = {"seed", "draw", "device", "dataset", "network", "networks", "output_folder"}
    for _, rows in table.groupby(["notebook", "dataset", "network"], dropna=False).groups.items():
        values = {}
        for parameters in given[rows]:
            for name in parameters.keys() - apart:
                values.setdefault(name, set()).add(json.dumps(parameters[name]))
        differ = sorted(name for name, found in values.items() if len(found) > 1)
        words[rows] = [" ".join(f"{n}={json.dumps(p[n])}" for n in differ if n in p) for p in given[rows]]
    return words


def _slug(text):
    return re.sub(r"[^\w.=-]+", "-", str(text)).strip("-")[-80:]


_CAPTIONS = {
    "What the papers claim": "Computed from the rows of the gallery. *Yes*, *no* and *in part* count the settings in which the claim held by more than two standard errors of an accuracy on 10 000 images (0.3 points at 98 %, 0.6 at 89 %, 1.0 at 50 %); *consistently* holds in all of them or not at all. Spans run over data sets and seeds (ARSVD), data sets and sizes, means over seeds (DDLR), or networks and sizes, means over draws (ENC).",
    "Dense networks": "Before anything is cut, as trained by our recipes.",
    "Parameters kept at no more than one point lost": "Percent. The threshold was chosen on valid images so that at most one point is lost there; in brackets, what then happened on test images (points). EVBMF has no threshold: its size is its own.",
    "Accuracy at equal size, energy / entropy / fixed": "Sizes agree within half a percent of the network (digits: one component). In brackets, energy minus fixed: the lowest and the highest seed, in points.",
    "Accuracy at equal size, with spread": "The table above, mean ± standard deviation over seeds.",
    "Entropy pruning: parameters kept at no more than one point lost": "Percent of the parameters; in brackets the change on test images, in points. Singular *components* (data-aware factors) or hidden *units* (the next layer refitted) are dropped over the whole network, or units first and components second (*both*).",
    "Entropy pruning: accuracy with 10 / 20 / 30 % kept": "The same rankings at equal sizes.",
    "Entropy pruning: accuracy of every ranking, with spread": "*Written as*: for components the factors; for units what the next layer does about those removed: *nothing*, their means *folded* into its bias, or *refitted* by least squares. *One range*: histograms of all units of a layer share their range.",
    "DDLR and Net-Trim: accuracy with 5 / 10 / 20 % kept": "DDLR and Net-Trim are cut to each size, epsilon chosen on valid images, \"-\" where no epsilon of the preset reaches it; *DDLR* is as posed, at 20 % by a search over epsilon. All others have the classifier left dense. Both refits see the same images.",
    "DDLR and Net-Trim: accuracy, with spread": "Every method, mean ± standard deviation over seeds.",
    "Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs": "Spatial scheme, first and last layer dense, one run each. The public ResNets were trained on all training images, calibration images among them.",
    "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs": "Means over draws of the calibration and measuring images. *fixed* is one share of the rank for all layers; *exact* has the best product of ENC's curves, proved; *exact, Fisher* the least predicted loss over ranks and schemes, proved.",
    "Rank search: predicted value (log A_p + log A_m) and its proved bound": "What the searches maximise or come near: the logarithm of ENC's predicted share of the accuracy, from energy curves (A_p) and measured curves (A_m); 0 is dense, higher is better. Means over draws; *bound*: no plan has more.",
    "Rank search: accuracy, with spread from the lowest to the highest draw": "With 75 / 50 / 35 / 25 % of the MACs.",
    "Side by side: choosers times factors, accuracy with 50 / 25 / 15 % of the MACs": "Means over three seeds, on ResNet-20 of one. *-*: not asked for.",
    "Side by side: every other way": "Beside dense and exact search on predicted losses; means over seeds. Percent of the dense network's parameters and MACs; times faster than the dense network in torch, timed beside it, with one thread; *fine-tuned* is the accuracy after one pass over 2 000 images, the same for all. *Size asked for*: a share of the MACs, *kept* of the parameters, an error (epsilon) or none (*own size*). *Refitted*: what reads the removed units, by least squares; *refit*: a cut layer of DDLR or Net-Trim. Zeros are counted with 16 bits an index, and run like the dense network. *-*: not fine-tuned.",
}


def _page(tables):
    shown = "\n\n".join("\n\n".join(filter(None, (f"## {h}", _CAPTIONS.get(h), t))) for h, t in tables.items())
    return f"""# The gallery: what every published number rests on

One executed notebook for each data set, network and seed, and all their rows in `results.csv` with parameters, versions, data
fingerprint and commit. This page is written from `results.csv` by `python -m lowrank_utils report --gallery`; a run is made with
`python -m lowrank_utils run --preset PRESET --seeds 0,1,2`.

Numbers are means over seeds ± standard deviation, in percent of the test images where nothing else is said. *Factored* says which layers a rule may cut: every layer, as ARSVD is
published, or the hidden layers, with the classifier left dense. *Kept* counts all parameters of the network; of networks with convolutions the share of MACs is held.
Nothing was fine-tuned but for the column *fine-tuned* of the last table. What the names of methods mean stands in the README, under *Words*.
Each row names the commit of the code that made it; where this history does not have it, it was folded into a later one.

{shown}
"""


def quote(text, tables):
    """Return the Markdown `text` with the tables under its headings renewed from `tables`, {heading: Markdown table}.

    >>> quote("# A\\nWords, #1.\\n\\n| x |\\n| old |\\n\\n# B\\n| y |\\n", {"A": "| new |", "C": "| z |"})
    '# A\\nWords, #1.\\n\\n| new |\\n\\n# B\\n| y |\\n'
    """
    for heading, table in tables.items():
        text = re.sub(rf"(?m)^(#+ {re.escape(heading)}\n(?:(?![#|]).*\n)*)(?:\|.*\n)+", lambda found, table=table: f"{found[1]}{table}\n", text)
    return text


def _merged(old, new):
    def keys(table):
        return list(table.reindex(columns=KEY, fill_value="").fillna("").itertuples(index=False, name=None))

    replaced = set(keys(new))
    kept = old[[key not in replaced for key in keys(old)]]
    table = results.joined([kept, new])
    return table.sort_values([name for name in KEY if name in table], kind="stable")


def _clean(path, label):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _lighter(output.data["image/png"])
    problems = [f"an error in cell {i + 1}" for i in errors(notebook)] + machine_paths(notebook)
    if problems:
        raise runs.RunError(f"{label} is not fit to be published, it holds {', '.join(problems[:3])}")
    return notebook


def _lighter(figure):
    # 64 colours serve a chart, at a quarter of the size; photographs with more stay close enough to be recognised
    from PIL import Image

    picture, smaller = Image.open(io.BytesIO(base64.b64decode(figure))), io.BytesIO()
    picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    light = base64.b64encode(smaller.getvalue()).decode()
    return min(figure, light, key=len)


def summary(folder=None):
    """Return {heading: Markdown table} of the published results: what the README and the gallery's page quote.

    Every number is a mean over seeds (and draws of calibration images) with its standard deviation, in percent: of the
    test images for accuracy, macro F1 and what was lost, of the dense network's parameters or MACs for what is kept.
    """
    everything = gallery(folder=folder)
    tables = {}
    for notebook, tell in {"02_arsvd": _adaptive_ranks, "03_entropy_pruning": _entropy_pruning, "04_ddlr": _ddlr}.items():
        table = everything[everything["notebook"] == notebook]
        if len(table):
            table = _in_points(table)
            tables |= tell(table, everything)
    last = {"02b_convolutions": _convolutions, "05_rank_search": _rank_search, "06_side_by_side": _side_by_side}
    for notebook, tell in last.items():
        table = everything[everything["notebook"] == notebook]
        if len(table):
            tables |= tell(table.assign(accuracy=100 * table["accuracy"]))
    stated = claims(folder)
    if (stated["ours"] != "not measured").any():
        tables = {"What the papers claim": _markdown(list(stated), stated.to_numpy().tolist())} | tables
    return tables


def claims(folder=None):
    """Return a DataFrame with one row a claim of the three abstracts: paper, claim, setting, theirs, ours, holds, rerun.

    *Ours* and *holds* are computed from the published rows; a claim for which they hold nothing is "not measured". `theirs`
    is the number that the abstract gives, where it gives one. `rerun` makes the rows again.
    """
    import pandas as pd

    table = gallery(folder=folder)
    needed = "notebook dataset network seed draw chooser factors scope target accuracy parameters_kept macs_kept".split()
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *needed])))  # other notebooks write other columns
    table = table.assign(accuracy=100 * table["accuracy"])
    rows = [
        {"paper": paper, "claim": claim, "setting": setting, "theirs": theirs}
        | dict(zip(("ours", "holds"), measure(table) or ("not measured", "-")))
        | {"rerun": f"`{rerun}`"}
        for paper, claim, setting, theirs, measure, rerun in _CLAIMS
    ]
    return pd.DataFrame(rows)


def _verdict(share):
    if share != share:  # of no setting at all
        return "-"
    return "yes" if share == 1 else "no" if share == 0 else "in part"


def _ahead(gain, level):
    # by more than two standard errors of an accuracy of `level` percent on 10 000 images
    return gain > 2 * (level * (100 - level) / 1e4) ** 0.5


def _span(gain):
    return f"{gain.min():+.1f} to {gain.max():+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")


def _dense(table, keys):
    # accuracy of the dense network of each run
    return table[table["chooser"] == "dense"].groupby(keys)["accuracy"].mean()


def _adaptive_ahead(scope):
    def measure(table):
        import pandas as pd

        mine = table[(table["notebook"] == "02_arsvd") & (table["factors"] == "svd") & (table["scope"] == scope)]
        mine = mine[mine["dataset"].isin(["mnist", "cifar10", "cifar100"]) & (mine["target"] == "kept 0.20")]
        by = mine.pivot_table("accuracy", ["dataset", "seed"], "chooser")
        rules = [rule for rule in ("energy", "entropy") if {rule, "fixed"} <= set(by)]
        if not rules:
            return None
        gains = {rule: by[rule] - by["fixed"] for rule in rules}
        said = ", ".join(f"{rule} {_span(gain)}" for rule, gain in gains.items())
        ahead = pd.concat([_ahead(gain, by["fixed"]) for gain in gains.values()])
        return f"points ahead of the fixed rank: {said}", _verdict(ahead.mean())

    return measure


def _small_without_loss(scope):
    def measure(table):
        ours = table[(table["notebook"] == "02_arsvd") & table["dataset"].isin(["mnist", "cifar10", "cifar100"])]
        cut = ours[(ours["chooser"] == "energy") & (ours["target"] == "drop 0.010")]
        cut = cut[(cut["factors"] == "svd") & (cut["scope"] == scope)]
        if not len(cut):
            return None
        keys = ["dataset", "network", "seed"]
        dense = _dense(ours, keys)
        lost = dense.reindex(cut.set_index(keys).index).to_numpy() - cut["accuracy"].to_numpy()
        kept = 100 * cut["parameters_kept"]
        said = f"{kept.min():.0f} to {kept.max():.0f} % of the parameters stay, {lost.min():.1f} to {lost.max():.1f} points lost on test"
        return said, _verdict(((kept < 50) & (lost < 2)).mean())

    return measure


def _ddlr_small(table):
    mine = table[(table["notebook"] == "04_ddlr") & (table["network"] == "lenet300")]
    keys = ["dataset", "seed"]
    dense = _dense(mine, keys)
    lost = {}
    for name in ("DDLR", "DDLR, cut, refit"):
        cut = mine[(mine["chooser"] == name) & (mine["target"] == "kept 0.20")].set_index(keys)["accuracy"]
        lost[name] = (dense.reindex(cut.index) - cut).mean()
    if not len(dense) or any(value != value for value in lost.values()):
        return None
    said = f"at 20 %: {lost['DDLR']:.1f} points lost as posed, {lost['DDLR, cut, refit']:.1f} with the classifier dense, cut and refit"
    return said, _verdict(sum(value < 2 for value in lost.values()) / 2)


def _ddlr_ahead(ours, theirs):
    def measure(table):
        sizes = ["kept 0.05", "kept 0.10", "kept 0.20", "kept 0.30"]
        mine = table[(table["notebook"] == "04_ddlr") & (table["network"] == "lenet300") & table["target"].isin(sizes)]
        by = mine.pivot_table("accuracy", ["dataset", "target"], "chooser")
        if not {ours, theirs} <= set(by):
            return None
        gain = (by[ours] - by[theirs]).dropna()
        ahead = _ahead(gain, by[theirs].reindex(gain.index))
        return f"points ahead of Net-Trim: {_span(gain)}; ahead in {ahead.sum()} of {len(gain)}", "yes" if ahead.all() else "no"

    return measure


def _enc_ahead(table):
    mine = table[(table["notebook"] == "05_rank_search") & (table["factors"] == "svd") & table["target"].isin(SIZES)]
    keys = ["dataset", "network", "target"]
    by = mine.pivot_table("accuracy", keys, "chooser")
    names = ["ENC-Map", "ENC-Model", "ENC-Inf"]
    if not {*names, "fixed"} <= set(by):
        return None
    dense = _dense(table[table["notebook"] == "05_rank_search"], keys[:2])
    whole = dense.reindex(by.index.droplevel("target")).to_numpy()
    by = by[by[[*names, "fixed"]].max(axis=1) > whole - 20]
    gain, settings = by[names].mean(axis=1) - by["fixed"], len(whole)
    ahead = _ahead(gain, by["fixed"])
    said = f"mean of Map, Model, Inf, points ahead: {_span(gain)}; ahead in {ahead.sum()} of {len(gain)}"
    return said + f", {settings - len(gain)} left out" * (settings > len(gain)), _verdict(ahead.mean())


def _lossless(table):
    mine = table[(table["notebook"] == "05_rank_search") & (table["target"] == "lossless")]
    if not len(mine):
        return None
    keys = ["dataset", "network", "seed", "draw"]
    dense = _dense(table[table["notebook"] == "05_rank_search"], keys)
    dense = dense.reindex(mine.set_index(keys).index).to_numpy()
    lost = dense - mine["accuracy"].to_numpy()
    spans = {name: dict.fromkeys(f"{100 * v:.0f}" for v in (part.min(), part.max())) for name, part in mine.groupby("network")["macs_kept"]}
    said = ", ".join(f"{network} {' to '.join(ends)} %" for network, ends in spans.items())
    verdict = _verdict((~_ahead(lost, dense)).mean())
    return f"MACs kept: {said}; at most {max(lost.max(), 0):.1f} points lost on test", f"{verdict}, by our search"


_MLPS = "MLPs on MNIST, CIFAR-10, CIFAR-100, three seeds"
_RUN = "python -m lowrank_utils run --preset"
_02 = f"for p in mnist cifar10 cifar100; do {_RUN} $p --seeds 0,1,2 --only 02; done"
_04 = f"for p in ddlr-mnist ddlr-fashion-mnist; do {_RUN} $p --seeds 0,1,2 --only 04; done"
_05 = f"for p in rank-search-vgg-small rank-search-resnet20 rank-search-resnet56; do for d in 0 1 2; do {_RUN} $p --set draw=$d --seeds 0 --only 05; done; done"
_CLAIMS = (
    ("ARSVD", "adaptive ranks (energy; spectral entropy) beat a fixed rank", f"{_MLPS}, 20 % of the parameters, every layer cut, as published", "-", _adaptive_ahead("every layer"), _02),
    ("ARSVD", "the same", f"{_MLPS}, 20 % of the parameters, classifier dense", "-", _adaptive_ahead("hidden layers"), _02),
    ("ARSVD", "substantial compression without losing accuracy", "every layer cut, ranks by energy, plain factors; holds: under half of the parameters, under 2 points lost, one allowed on valid", "-", _small_without_loss("every layer"), _02),
    ("ARSVD", "the same", "the same, classifier dense", "-", _small_without_loss("hidden layers"), _02),
    ("DDLR", "far fewer parameters, little accuracy lost, no retraining", "LeNet-300-100, mean of MNIST and Fashion-MNIST; holds: under 2 points lost", "-", _ddlr_small, _04),
    ("DDLR", "consistently ahead of Net-Trim", "the same at 5, 10, 20 and 30 %, classifier dense, indices counted, both cut, no refit", "-", _ddlr_ahead("DDLR, cut", "Net-Trim, with indices"), _04),
    ("DDLR", "the same", "the same, both cut and refitted", "-", _ddlr_ahead("DDLR, cut, refit", "Net-Trim, cut, refit, with indices"), _04),
    ("ENC", "ranks of the whole network at once are the better compromise", "against one fixed share, 75 to 25 % of the MACs, plain factors; left out where it and all three of ENC's lose 20 points", "-", _enc_ahead, _05),
    ("ENC", "lossless compression", "no loss on valid images (the public ResNets were trained on them); exact search on predicted losses, sequential factors", "-", _lossless, _05),
    ("ENC", "VGG-16 with fewer FLOPs more accurate than the baseline, its ranks found on a CPU", "ImageNet, fine-tuned", "25 % of FLOPs, +0.7 points, 3 minutes", lambda table: None, f"{_RUN} rank-search-imagenet --only 05 --set dataset=folder:PATH"),
)  # fmt: skip


def ledger(table):
    """Return the rows of notebook 06 as a table for readers: by network, size and accuracy, percent, kilobytes, milliseconds.

    A pandas Styler without its index; empty where nothing was measured.
    """
    from pandas.io.formats.style import Styler

    percent = {"parameters_kept": "parameters %", "macs_kept": "MACs %", "accuracy": "accuracy %", "f1": "F1 %"}
    percent |= {"tuned_accuracy": "tuned %", "tuned_f1": "tuned F1 %"}
    words = {"target": "size", "chooser": "method", "factors": "written as", "bytes": "kB", "latency_ms_1": "ms, 1"}
    words |= {"latency_ms_64": "ms, 64", "faster_1": "faster, 1", "faster_64": "faster, 64", "seconds_to_find": "seconds", "evaluations": "tried", "source": "from"}
    order = "network target chooser factors needs parameters_kept macs_kept bytes latency_ms_1 faster_1 latency_ms_64 faster_64"
    order += " accuracy f1 tuned_accuracy tuned_f1 seconds_to_find evaluations source"
    shown = table.assign(**{name: 100 * table[name] for name in percent}, bytes=table["bytes"] / 1000)
    shown = shown.sort_values(["network", "target", "accuracy"], ascending=[True, True, False])
    shown = shown[order.split()].rename(columns=percent | words)
    shown = Styler(shown, cell_ids=False).hide()  # an id for each cell would double the file
    digits = {"kB": "{:.0f}", "ms, 1": "{:.2f}", "ms, 64": "{:.2f}", "faster, 1": "{:.1f}", "faster, 64": "{:.1f}", "seconds": "{:.2f}", "tried": "{:.0f}"}
    digits |= dict.fromkeys(percent.values(), "{:.1f}")
    return shown.format(digits, na_rep="").set_table_attributes('style="font-size: 75%"').set_sticky(axis="columns")


def _in_points(table):
    # percent, and what was lost against the dense network of the same run
    names = ("accuracy", "f1", "parameters_kept")
    table = table.assign(**{name: 100 * table[name] for name in names})
    dense = table[table["chooser"] == "dense"].set_index(["dataset", "network", "seed"])["accuracy"]
    lost = dense.reindex(table.set_index(dense.index.names).index).to_numpy() - table["accuracy"]
    return table.assign(lost=lost)


def _entropy_pruning(table, everything):
    best = {"component": "data-aware", "arsvd,": "data-aware", "both": "data-aware", "unit": "refitted"}
    choosers = ["component entropy", "component output", "arsvd, classifier dense"]
    choosers += ["unit entropy", "unit random", "unit output"]
    choosers += ["both entropy", "both output"]
    mine = table[table["factors"] == table["chooser"].str.split().str[0].map(best)]
    small, equal, spread = [], [], []
    for key, part in mine.groupby(["dataset", "network"]):
        by = {name: part[part["chooser"] == name] for name in choosers}
        drop = [by[name][by[name]["target"] == "drop 0.010"] for name in choosers]
        small.append([*key, *(f"{mean_and_spread(rows['parameters_kept'])} ({-rows['lost'].mean():+.1f})" for rows in drop)])
        cells = []
        for name in choosers:
            sizes = [by[name].loc[by[name]["target"] == f"kept 0.{kept}0", "accuracy"].mean() for kept in (1, 2, 3)]
            cells.append(" / ".join(f"{value:.1f}" for value in sizes))
        equal.append([*key, *cells])
    for key, part in table.groupby(["dataset", "network", "chooser", "factors"]):
        sizes = [part.loc[part["target"] == f"kept 0.{kept}0", "accuracy"] for kept in (1, 2, 3)]
        if all(len(values) for values in sizes):
            spread.append([*key, *(mean_and_spread(values) for values in sizes)])
    where = ["data set", "network"]
    return {
        "Entropy pruning: parameters kept at no more than one point lost": _markdown([*where, *choosers], small),
        "Entropy pruning: accuracy with 10 / 20 / 30 % kept": _markdown([*where, *choosers], equal),
        "Entropy pruning: accuracy of every ranking, with spread": _markdown(
            [*where, "ranking", "written as", "10 % kept", "20 % kept", "30 % kept"], spread
        ),
    }


def _ddlr(table, everything):
    choosers = ["DDLR", "DDLR, cut", "DDLR, cut, refit", "Net-Trim, non-zeros", "Net-Trim, with indices"]
    choosers += ["Net-Trim, cut, refit, non-zeros", "Net-Trim, cut, refit, with indices"]
    choosers += ["ARSVD", "data-aware", "ReLU-aware", "Fisher-weighted", "units first"]
    equal, spread = [], []
    for key, part in table.groupby(["dataset", "network"]):
        cells = []
        for name in choosers:
            mine = part[part["chooser"] == name]
            # a method that reached the size on some seeds only would be compared on other networks
            sizes = [mine.loc[mine["target"] == f"kept 0.{kept}", "accuracy"] for kept in ("05", "10", "20")]
            whole = part["seed"].nunique()
            cells.append(" / ".join(f"{v.mean():.1f}" if len(v) == whole else "-" for v in sizes))
            spread.append([*key, name, *(mean_and_spread(v) if len(v) == whole else "-" for v in sizes)])
        equal.append([*key, *cells])
    where = ["data set", "network"]
    return {
        "DDLR and Net-Trim: accuracy with 5 / 10 / 20 % kept": _markdown([*where, *choosers], equal),
        "DDLR and Net-Trim: accuracy, with spread": _markdown([*where, "method", "5 % kept", "10 % kept", "20 % kept"], spread),
    }


SIZES = ("macs 0.75", "macs 0.50", "macs 0.35", "macs 0.25")


def _at_sizes(part, tell):
    # one cell of a table: what `tell` says of the accuracies at each size
    each = [part.loc[part["target"] == size, "accuracy"] for size in SIZES]
    return " / ".join(tell(values) if len(values) else "-" for values in each)


def _mean(values):
    return f"{values.mean():.1f}"


def _convolutions(table):
    kinds, rows = ["svd", "data-aware", "sequential", "relu-aware", "fisher-weighted"], []
    for key, part in table.groupby(["dataset", "network"]):
        dense = mean_and_spread(part.loc[part["chooser"] == "dense", "accuracy"])
        for chooser, ranks in {"fixed": "one fixed share", "energy": "energy"}.items():
            mine = part[part["chooser"] == chooser]
            rows.append([*key, dense, ranks, *(_at_sizes(mine[mine["factors"] == kind], _mean) for kind in kinds)])
    header = ["data set", "network", "dense", "ranks", *kinds]
    return {"Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs": _markdown(header, rows)}


# Kim, Khan & Kyung 2019: accuracy at half of the FLOPs, plain factors, no fine-tuning, another training of the network
_ENC_TABLE = {("cifar10", "resnet56"): {"ENC-Map": "89.8", "ENC-Model": "89.6", "ENC-Inf": "90.2"}}


def _rank_search(table):
    choosers = ["fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact, Fisher"]
    equal, spread, left = [], [], []
    for key, part in table[table["chooser"] != "dense"].groupby(["dataset", "network"]):
        dense = table[(table["dataset"] == key[0]) & (table["network"] == key[1]) & (table["chooser"] == "dense")]
        draws = str(part["draw"].nunique())
        for factors in ("svd", "data-aware", "sequential"):
            mine = part[part["factors"] == factors]
            by = {name: mine[mine["chooser"] == name] for name in choosers}
            equal.append(
                [*key, mean_and_spread(dense["accuracy"].drop_duplicates()), factors, draws, *(_at_sizes(by[c], _mean) for c in choosers)]
            )
            spread.append([*key, factors, *(_at_sizes(by[c], _range) for c in choosers)])
        if key in _ENC_TABLE:
            lines = (_ENC_TABLE[key].get(name) for name in choosers)
            equal.append([*key, "-", "svd, in the paper", "1", *(f"- / {line} / - / -" if line else "-" for line in lines)])
        for size in SIZES:
            mine = part[(part["target"] == size) & (part["factors"] == "svd")]
            worth = {name: mine.loc[mine["chooser"] == name, "predicted"].mean() for name in choosers[1:5]}
            bound = mine.loc[mine["chooser"] == "exact", "bound"].mean()
            if len(mine):
                left.append([*key, f"{100 * float(size.split()[1]):.0f} %", *(f"{v:.3f}" for v in worth.values()), f"{bound:.3f}"])
    where = ["data set", "network"]
    return {
        "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs": _markdown([*where, "dense", "factors", "draws", *choosers], equal),
        "Rank search: predicted value (log A_p + log A_m) and its proved bound": _markdown([*where, "MACs kept", *choosers[1:5], "bound"], left),
        "Rank search: accuracy, with spread from the lowest to the highest draw": _markdown([*where, "factors", *choosers], spread),
    }


def _side_by_side(table):
    crossed, ways = [], []
    shares = sorted(table["target"][table["target"].str.startswith("macs ")].unique(), reverse=True)
    kinds = [k for k in ("svd", "data-aware", "sequential", "relu-aware") if k in set(table["factors"])]
    keys = ["dataset", "network"]
    for key, part in table.groupby(keys):
        for chooser in part[part["factors"].isin(kinds) & part["target"].isin(shares)]["chooser"].unique():
            mine = part[part["chooser"] == chooser]
            cells = [[mine.loc[(mine["factors"] == k) & (mine["target"] == t), "accuracy"].mean() for t in shares] for k in kinds]
            crossed.append([*key, chooser, *(" / ".join("-" if v != v else f"{v:.1f}" for v in cell) for cell in cells)])
        shown = part[~part["factors"].isin(kinds) | part["chooser"].isin(["evbmf", "exact, Fisher"])]
        method = shown.groupby(["chooser", "factors", "target"], sort=False)
        mean = method[["parameters_kept", "macs_kept", "bytes", "faster_64", "accuracy"]].mean()
        for name in mean.sort_values("accuracy", ascending=False).index:
            row, rows = mean.loc[name], method.get_group(name)
            tuned = 100 * rows["tuned_accuracy"].dropna()
            ways.append(
                [*key, *name, f"{100 * row['parameters_kept']:.0f}", f"{100 * row['macs_kept']:.0f}", f"{row['bytes'] / 1000:.0f}"]
                + [f"{row['faster_64']:.1f}", mean_and_spread(rows["accuracy"]), mean_and_spread(100 * rows["f1"]), mean_and_spread(tuned) if len(tuned) else "-", str(rows["seed"].nunique())]
            )
    sizes = " / ".join(f"{100 * float(t.split()[1]):.0f}" for t in shares)
    where = ["data set", "network"]
    header = [*where, "method", "written as", "size asked for", "parameters %", "MACs %", "kB", "times faster, 64 inputs", "accuracy", "macro F1", "fine-tuned", "seeds"]
    return {
        f"Side by side: choosers times factors, accuracy with {sizes} % of the MACs": _markdown([*where, "ranks", *kinds], crossed),
        "Side by side: every other way": _markdown(header, ways),
    }


def _range(values):
    return f"{values.min():.1f}-{values.max():.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def _adaptive_ranks(table, everything):
    trained = everything[everything["notebook"] == "01_training"]
    trained = trained.assign(accuracy=100 * trained["accuracy"], f1=100 * trained["f1"])
    by = ["dataset", "network", "scope", "factors"]

    sizes = trained.groupby(["dataset", "network"])
    first = [
        [*key, f"{int(part['parameters'].iloc[0]):,}", mean_and_spread(part["accuracy"]), mean_and_spread(part["f1"]), str(part["seed"].nunique())]
        for key, part in sizes
    ]
    rules = ("energy", "entropy", "fixed")
    drop = table[table["target"] == "drop 0.010"]
    second = []
    for key, part in drop.groupby(by):
        cells = [
            f"{mean_and_spread(mine['parameters_kept'])} ({-mine['lost'].mean():+.1f})"
            for mine in (part[part["chooser"] == rule] for rule in rules)
        ]
        own = table[(table[by] == list(key)).all(axis=1) & (table["chooser"] == "evbmf")]
        second.append([*key, *cells, f"{mean_and_spread(own['parameters_kept'])} ({-own['lost'].mean():+.1f})"])
    third = []
    equal = table[table["target"].isin(["kept 0.10", "kept 0.20", "kept 0.30"])]
    for key, part in equal.groupby([*by, "target"]):
        scores = part.pivot(index="seed", columns="chooser", values="accuracy")
        gain = scores["energy"] - scores["fixed"]
        gains = f"{gain.mean():+.1f} ({gain.min():+.1f} to {gain.max():+.1f})"
        kept = f"{100 * float(key[-1].split()[1]):.0f} %"
        third.append([*key[:-1], kept, *(mean_and_spread(scores[rule]) for rule in rules), gains])
    wide = []
    for key, part in equal.groupby(by):
        cells = []
        for _, size in part.groupby("target"):
            scores = size.pivot(index="seed", columns="chooser", values="accuracy")
            gain = scores["energy"] - scores["fixed"]
            means = " / ".join(f"{scores[rule].mean():.1f}" for rule in rules)
            cells.append(f"{means} ({gain.min():+.1f} to {gain.max():+.1f})")
        wide.append([*key, *cells])
    where = ["data set", "network", "factored", "factors"]
    return {
        "Dense networks": _markdown(["data set", "network", "parameters", "accuracy %", "macro F1 %", "seeds"], first),
        "Parameters kept at no more than one point lost": _markdown([*where, *rules, "EVBMF, own size"], second),
        "Accuracy at equal size, energy / entropy / fixed": _markdown([*where, "10 % kept", "20 % kept", "30 % kept"], wide),
        "Accuracy at equal size, with spread": _markdown([*where, "kept", *rules, "energy - fixed, lowest to highest seed"], third),
    }


def mean_and_spread(values):
    """Return mean and standard deviation (n - 1) of the values of a Series in words, one value alone as it is.

    >>> import pandas as pd
    >>> mean_and_spread(pd.Series([90.0, 92.0])), mean_and_spread(pd.Series([90.0]))
    ('91.0 ± 1.4', '90.0')
    """
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def _markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def errors(notebook):
    """Return the positions (from 0) of the cells of a notebook that ended in an error."""
    return [
        i for i, c in enumerate(notebook.cells) if any(o.output_type == "error" for o in c.get("outputs", []))
    ]


def machine_paths(notebook):
    """Return the absolute paths of a machine that a notebook holds, images left out; sorted, each once.

    >>> import nbformat
    >>> cell = nbformat.v4.new_code_cell("open('/home/ada/net.bin'); 'https://example.org/home/ada'")
    >>> machine_paths(nbformat.v4.new_notebook(cells=[cell]))
    ['/home/ada']
    """
    texts = []

    def walk(value, key=""):
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, name)
        elif isinstance(value, list):
            for item in value:
                walk(item, key)
        elif isinstance(value, str) and not key.startswith("image/"):
            texts.append(value)

    walk(notebook)
    text = "\n".join(texts)
    own = {str(p) for p in (paths.ROOT, Path.home(), Path(tempfile.gettempdir())) if len(p.parts) > 1}
    # Path.home() may be as short as /root: it counts as a whole part of a path only
    found = {m for p in own for m in re.findall(rf"(?<![\w./-]){re.escape(p)}(?![\w-])[\w./~-]*", text)}
    return sorted(found | set(MACHINE.findall(text)))
