"""explorer.py and its page: the numbers of the file, and what a reader sees, drags and hears in a browser."""

import json
import re
import shutil

import numpy as np
import pytest
from test_pages import CONTRASTS, browser, in_browser, page_of  # noqa: F401

from lowrank_utils import compression, paths
from lowrank_utils.lab import data, training
from lowrank_utils.network.profile import profile
from lowrank_utils.ranks import prediction
from lowrank_utils.workbook import explorer, explorer_page
from lowrank_utils.workbook.site import build

GALLERY = paths.GALLERY  # before a toy project takes its place
BUDGETS = (0.2, 0.35, 0.5, 0.75, 0.9)
NAMES = [own["name"] for own in explorer.read()["networks"]]


@pytest.fixture(scope="module")
def held():
    return explorer.read()


@pytest.fixture(scope="module")
def digits():
    images = data.load("digits")
    model, _ = training.trained(images, "lenet300", device="cpu")
    how = {"samples": compression.SAMPLES, "estimator": "signs", "draws": 1, "dense": ("fc3",)}
    return profile(model, images.tensors("train", 1000)[0], **how)


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_the_published_file_is_small_and_holds_every_network_with_its_provenance(held):
    path = paths.GALLERY / "explorer.json"
    assert path.stat().st_size < 400_000
    wanted = [subject.name for subject in explorer.SUBJECTS]
    assert [name for name in wanted if name in NAMES] == NAMES and len(NAMES) >= 6
    for own in held["networks"]:
        assert {"parameters", "data_fingerprint", "versions", "commit", "code", "finished"} <= own["provenance"].keys()
        assert len(own["kept"]) >= 60 and own["kept"] == sorted(own["kept"]), own["name"]
        for chooser in explorer.CHOOSERS:
            table = own["choosers"][chooser]
            assert {len(column) for column in table.values()} == {len(own["kept"])}
            for kept, plan, macs in zip(own["kept"], table["plans"], table["macs"], strict=True):
                assert plan is None or len(plan.split(" ")) == len(own["layers"])
                assert plan is None or macs <= kept * own["dense"]["macs"] * (1 + 1e-9), (own["name"], chooser, kept)


def test_the_exact_search_seldom_promises_more_loss_than_another_chooser(held):
    # it may: no rank goes below its floor, and the calibration looks at where a loss comes from too
    for own in held["networks"]:
        tables, ratios = own["choosers"], []
        for chooser in explorer.CHOOSERS[1:]:
            pairs = zip(tables["exact"]["lost"], tables[chooser]["lost"], strict=True)
            ratios += [mine / other for mine, other in pairs if mine is not None and other is not None and other > 0.05]
        assert len(ratios) > 30, own["name"]
        assert np.quantile(ratios, 0.5) < 1 and np.quantile(ratios, 0.8) < 1.05, own["name"]


@pytest.mark.slow
def test_plans_and_predictions_are_those_of_the_package(held, digits):
    expected = compression.predict(digits, BUDGETS)
    own = next(own for own in held["networks"] if own["name"] == "lenet300-digits")
    dense = own["dense"]["accuracy"]
    for kept, row in zip(BUDGETS, expected.table.to_dict("records"), strict=True):
        told = explorer.answer(held, "lenet300-digits", "exact", kept)
        plan = {name: word for name, word in told["plan"].items() if word != "-"}
        assert plan == {name: str(rank) for name, rank in expected.plans[kept].items()}
        assert dense - told["predicted"] == pytest.approx(row["lost"] / 100, rel=0.01)
        assert told["low"] <= told["predicted"] <= told["high"]
        least, most = prediction.lost_range(row["divergence"], own["images"])
        assert dense - told["low"] == pytest.approx(most / 100, rel=0.01)
        assert told["high"] == pytest.approx(min(1, dense - least / 100), abs=1e-5)


def test_the_header_holds_the_constants_that_every_table_was_computed_with(held):
    known = prediction.MEASURED
    assert (held["accuracy"], held["spread"]) == (list(known.accuracy), known.spread)
    assert held["trusted"] == prediction.lost(prediction.TRUSTED) and held["covered"] == [42, 45]
    for own in held["networks"]:
        assert own["provenance"]["constants"] == [*known.scale, *known.accuracy], own["name"]


def test_losses_of_other_constants_are_predicted_anew(held, tmp_path):
    path, own = tmp_path / "explorer.json", next(each for each in held["networks"] if each["name"] == "lenet300-digits")
    wrong = json.loads(json.dumps(own))
    wrong["provenance"]["constants"][0] += 0.1
    for table in wrong["choosers"].values():
        table["lost"] = [None if lost is None else 2 * lost for lost in table["lost"]]
    path.write_text(json.dumps({**held, "networks": [wrong]}))
    (again,) = explorer.renew([], path)["networks"]
    for chooser, table in own["choosers"].items():
        mine = again["choosers"][chooser]
        assert mine["plans"] == table["plans"]
        for found, wanted in zip(mine["lost"], table["lost"], strict=True):
            assert found == (wanted and pytest.approx(wanted, rel=0.01))


# of the accuracies measured on test images for a network of the fit, at most so many lie outside of their range
OUTSIDE = {"lenet300-fashion-mnist": 0, "lenet300-mnist": 0, "lenet300-digits": 2, "lenet5-fashion-mnist": 6}


@pytest.mark.parametrize("network", NAMES)
def test_measured_accuracies_of_each_network_lie_in_a_range_that_is_no_wider_than_needed(held, network):
    # these networks had a part in the fit, so this is no coverage of a network that had none (test_prediction.py has that)
    own = next(each for each in held["networks"] if each["name"] == network)
    rows = [row for row in own["measured"]["exact"] if row[1] is not None] or own["published"]["exact"]
    told = [(row[1], explorer.answer(held, network, "exact", row[0])) for row in rows]
    told = [(right, each) for right, each in told if each["predicted"] is not None]
    outside = [not each["low"] <= right <= each["high"] for right, each in told]
    assert len(told) >= 4 and sum(outside) <= OUTSIDE.get(network, 0)
    assert np.median([each["high"] - each["low"] for _, each in told]) < 0.08  # of the accuracy, deep cuts of ResNet-20


@pytest.mark.slow
def test_a_measured_accuracy_is_that_of_compress(held, digits):
    own = next(each for each in held["networks"] if each["name"] == "lenet300-digits")
    kept, accuracy, _ = own["measured"]["exact"][5]
    small = compression.compress(digits.model, digits.calibration, kept=kept, refine=False, seed=0)
    images, labels = data.load("digits").tensors("test")
    assert training.evaluate(small.model, images, labels).accuracy == pytest.approx(accuracy, abs=0.006)


def test_between_two_measured_budgets_numbers_are_interpolated_and_outside_there_are_none(held):
    own = next(each for each in held["networks"] if each["name"] == "lenet300-fashion-mnist")
    (low, first, _), (high, second, _) = own["measured"]["exact"][-2:]
    at = explorer.answer(held, own["name"], "exact", low)
    assert (at["measured"], at["known"]) == (first, "measured")
    middle = next(kept for kept in own["kept"] if low < kept < high)
    told = explorer.answer(held, own["name"], "exact", middle)
    share = (middle - low) / (high - low)
    assert told["measured"] == pytest.approx(first + share * (second - first)) and told["known"] == "interpolated"
    beyond = explorer.answer(held, "resnet20-cifar10", "exact", 0.99)
    assert (beyond["measured"], beyond["known"], beyond["timed"]) == (None, "none", "none")
    published = explorer.answer(held, "resnet20-cifar10", "exact", 0.5)
    assert published["known"] == "published" and 0.88 < published["measured"] < 0.92


def test_a_small_network_is_computed_anew_and_kept(tmp_path, monkeypatch):
    subject = explorer.Subject("LeNet-300-100 on digits", "digits", "lenet300", measured=2)
    monkeypatch.setattr(explorer, "faster", lambda *_: 1.5)
    path = tmp_path / "explorer.json"
    made = explorer.renew([subject], path, kept=(0.1, 0.3, 0.6, 1.0))
    (own,) = made["networks"]
    assert own["kept"] == [0.1, 0.3, 0.6, 1.0] and own["choosers"]["exact"]["plans"][0] is None
    assert [row[0] for row in own["measured"]["exact"]] == [0.3, 0.6]
    assert own["choosers"]["exact"]["plans"][-1] == "- - -" and own["choosers"]["exact"]["lost"][-1] == 0
    before = path.read_bytes()
    explorer.renew([subject], path)
    assert path.read_bytes() == before  # what is there is not computed again


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"schema":2,"netw', "cut short"), ("[]", "version None"), ('{"schema":0,"networks":[]}', "version 0")],
)
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path, content, said):
    path = tmp_path / "explorer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        explorer.read(path)


def test_unknown_names_are_refused_in_a_sentence(held):
    with pytest.raises(ValueError, match="unknown network 'foo'; known: lenet300-fashion-mnist"):
        explorer.answer(held, "foo", "exact", 0.5)
    with pytest.raises(ValueError, match="no plan of 'mine'"):
        explorer.answer(held, "lenet300-digits", "mine", 0.5)
    with pytest.raises(ValueError, match="exact cannot reach 0.05"):
        explorer.answer(held, "lenet300-digits", "exact", 0.05)


def test_colours_become_legible_on_paper():
    for paper in ((1.0, 1.0, 1.0), (0.075, 0.086, 0.094)):
        for colour in ((0.87, 0.56, 0.02), (0.0, 0.45, 0.7), paper):
            found = explorer_page.legible(colour, paper)
            parts = [int(found[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            assert explorer_page.contrast(parts, paper) >= 3.1
    assert explorer_page.legible((0, 0, 0), (1, 1, 1)) == "#000000"


# ---- the page --------------------------------------------------------------------------------------------------------

SHOWN = """(chooser) => Object.fromEntries([...document.querySelectorAll(`#ex-table tr[data-chooser="${chooser}"] td[data-name]`)]
    .map((cell) => [cell.dataset.name, cell.dataset.value === undefined ? null : Number(cell.dataset.value)]))"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return explorer_page.standalone(tmp_path_factory.mktemp("explorer") / "explorer.html")


@pytest.fixture
def opened(browser, alone):  # noqa: F811
    with page_of(browser) as (page, complaints):
        page.set_viewport_size({"width": 1000, "height": 1200})
        page.goto(alone.as_uri())
        page.wait_for_selector("#ex-front [role=img]")
        yield page
        assert complaints == []


def drag(page, place):
    page.eval_on_selector(
        "#ex-kept", "(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})); }", str(place)
    )


@in_browser
@pytest.mark.parametrize("network", NAMES)
def test_dragging_shows_what_python_answers(opened, held, network):
    opened.select_option("#ex-network", network)
    kept = next(own for own in held["networks"] if own["name"] == network)["kept"]
    summaries, budgets = set(), [kept[round(share * (len(kept) - 1))] for share in BUDGETS]
    for budget in budgets:
        drag(opened, kept.index(budget))
        summaries.add(opened.text_content("#ex-summary"))
        assert opened.text_content("#ex-budget") == f"{100 * budget:.0f} % of the multiply-accumulates"
        for chooser in explorer.CHOOSERS:
            try:
                expected = explorer.answer(held, network, chooser, budget)
            except ValueError:
                assert opened.evaluate(SHOWN, chooser) == {}
                continue
            shown = opened.evaluate(SHOWN, chooser)
            for name in ("measured", "predicted", "macs", "parameters", "faster"):
                wanted = None if expected[name] is None else pytest.approx(expected[name], rel=1e-12)
                assert shown[name] == wanted, (budget, chooser, name)
            said = opened.text_content(f'#ex-table tr[data-chooser="{chooser}"] td[data-name="predicted"]')
            ends = [float(number) for number in re.findall(r"([\d.]+) %", said)]
            wanted = [expected[name] for name in ("predicted", "low", "high") if expected[name] is not None]
            assert ends == pytest.approx([100 * share for share in wanted], abs=0.051)
        plan = explorer.answer(held, network, "fixed", budget)["plan"]
        words = opened.eval_on_selector_all(
            "#ex-layers tbody tr", "rows => rows.map(r => [...r.cells].pop().textContent)"
        )
        assert [re.sub(r"rank (\d+).*", r"\1", word) for word in words] == [
            "dense" if word == "-" else re.sub(r"\D", "", word) for word in plan.values()
        ]
    assert len(summaries) == len(budgets)


@in_browser
def test_a_real_mouse_drags_the_budget(opened):
    before, box = opened.text_content("#ex-summary"), opened.locator("#ex-kept").bounding_box()
    opened.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + box["height"] / 2, steps=5)
    opened.mouse.up()
    assert opened.text_content("#ex-summary") != before
    kept = float(re.search(r"\d+", opened.text_content("#ex-budget"))[0])
    assert 55 <= kept <= 67 and f"kept={kept:.0f}" in opened.url


@in_browser
def test_hovering_names_a_point_and_a_click_takes_its_budget(opened):
    point = opened.locator('#ex-front [aria-label^="one share for all, 6 %"]')
    point.hover(force=True)
    told = opened.text_content("#ex-front-named")
    assert re.match(r"one share for all, \d+ % of the multiply-accumulates: accuracy [\d.]+ % \(measured", told)
    point.click(force=True)
    assert re.search(r", (\d+ %)", told)[1] in opened.text_content("#ex-budget")


@in_browser
def test_everything_is_reached_by_the_keyboard(opened):
    opened.focus("#ex-network")
    opened.keyboard.press("ArrowDown")
    assert opened.input_value("#ex-network") == NAMES[1]
    opened.keyboard.press("Tab")
    before = opened.text_content("#ex-budget")
    opened.keyboard.press("ArrowRight")
    assert opened.text_content("#ex-budget") != before
    assert opened.get_attribute("#ex-kept", "aria-valuetext") == opened.text_content("#ex-budget")
    seen = []
    opened.keyboard.press("Tab")
    for _ in range(3):
        seen.append(opened.text_content("#ex-front-named"))
        assert opened.evaluate("document.activeElement.getAttribute('aria-label')") == seen[-1]
        opened.keyboard.press("ArrowRight")
    assert len(set(seen)) == 3
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.dataset.place") == "3"  # it is still there, in the figure drawn anew
    kept = re.search(r", (\d+ %)", opened.text_content("#ex-front-named"))[1]
    assert opened.text_content("#ex-budget").startswith(kept)
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.closest('svg').id") == "ex-ranks"
    assert ": exact search rank " in opened.text_content("#ex-ranks-named")


@in_browser
def test_figures_are_told_in_words(opened):
    for name in ("ex-front", "ex-ranks"):
        words = opened.get_attribute(f"#{name}", "aria-label")
        assert len(words) > 60 and opened.get_attribute(f"#{name}", "role") == "group"
    unnamed = opened.evaluate(
        "[...document.querySelectorAll('.explorer [tabindex], .explorer input, .explorer select')]"
        ".filter(n => !n.getAttribute('aria-label') && !(n.labels && n.labels.length)).length"
    )
    assert unnamed == 0
    assert "Pareto front: " in opened.get_attribute("#ex-front", "aria-label")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_marks_have_contrast(browser, alone, scheme):  # noqa: F811
    with page_of(browser) as (page, _):
        page.emulate_media(color_scheme=scheme)
        page.goto(alone.as_uri())
        page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
        found = page.evaluate(CONTRASTS, ".explorer")
    assert len(found["text"]) > 60 and len(found["marks"]) > 50
    assert min(found["text"], key=lambda pair: pair[1])[1] >= 4.5, min(found["text"], key=lambda pair: pair[1])
    assert min(found["marks"], key=lambda pair: pair[1])[1] >= 3.0, min(found["marks"], key=lambda pair: pair[1])


@in_browser
@pytest.mark.parametrize("wide", [420, 1000])
def test_it_fits_and_draws_within_two_seconds(browser, alone, wide):  # noqa: F811
    assert alone.stat().st_size < 500_000
    with page_of(browser) as (page, complaints):
        page.set_viewport_size({"width": wide, "height": 900})
        page.goto(alone.as_uri() + f"?network={NAMES[-1]}")
        page.wait_for_function("window.explorerDrawn")
        page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= wide
        drawn = page.evaluate("window.explorerDrawn")
        assert drawn < 2000, f"the first figure took {drawn:.0f} ms"
    assert complaints == []


@in_browser
def test_an_unknown_network_in_the_address_is_named(browser, alone):  # noqa: F811
    with page_of(browser) as (page, complaints):
        page.goto(alone.as_uri() + "?network=foo%3Cb%3E&kept=40")
        said = page.text_content("#ex-alert")
        assert said.startswith("There is no network “foo<b>” here, so the page shows LeNet-300-100 on Fashion-MNIST.")
        assert page.input_value("#ex-network") == NAMES[0] and page.text_content("#ex-budget").startswith("40 %")
        page.select_option("#ex-network", NAMES[2])
        assert page.is_hidden("#ex-alert")
        page.goto(alone.as_uri() + f"?network={NAMES[3]}&kept=nonsense")
        assert page.input_value("#ex-network") == NAMES[3] and page.is_hidden("#ex-alert")
    assert complaints == []


@in_browser
@pytest.mark.parametrize("how", ["within the numbers", "numbers gone", "another version"])
def test_a_page_that_is_cut_short_says_so(browser, alone, tmp_path, how):  # noqa: F811
    text = alone.read_text()
    if how == "within the numbers":
        text = text[: len(text) * 2 // 3]
    elif how == "numbers gone":
        text = re.sub(r'(id="explorer-data">).*?</script>', r"\1</script>", text, flags=re.S)
    else:
        text = text.replace('id="explorer-data">{"schema":2', 'id="explorer-data">{"schema":7')
    (tmp_path / "explorer.html").write_text(text)
    with page_of(browser) as (page, complaints):
        page.goto((tmp_path / "explorer.html").as_uri())
        said = page.text_content("#ex-alert")
        assert ("version 7" if how == "another version" else "cut short or damaged") in said
        assert page.is_visible("#ex-alert") and page.is_hidden("#ex-all")
    assert complaints == []


@in_browser
def test_the_numbers_are_plain_json_in_the_page(alone, held):
    found = re.search(r'id="explorer-data">(.*?)</script>', alone.read_text(), re.S)[1]
    assert json.loads(found.replace("<\\/", "</")) == held


@in_browser
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_has_a_page_of_it_and_the_one_file(browser, project):  # noqa: F811
    (project.root / "README.md").write_text("# Toys\n")
    (project.root / "data").mkdir()
    (project.root / "data" / "README.md").write_text("# Data\nNone.\n")
    shutil.copy(GALLERY / "explorer.json", paths.GALLERY.mkdir(parents=True) or paths.GALLERY)
    site = build().parent
    assert 'href="explore.html"' in (site / "index.html").read_text()
    for wide in (420, 1200):
        with page_of(browser) as (page, complaints):
            page.set_viewport_size({"width": wide, "height": 900})
            page.goto((site / "explore.html").as_uri())
            page.wait_for_function("window.explorerDrawn")
            assert page.evaluate("document.documentElement.scrollWidth") <= wide
            assert page.text_content("h1").startswith(explorer_page.HEADING)
            assert min(ratio for _, ratio in page.evaluate(CONTRASTS, ".explorer")["text"]) >= 4.5
            page.click("text=one file")
            page.wait_for_function("window.explorerDrawn")
            assert page.url.endswith(explorer_page.ALONE)
        assert complaints == []
