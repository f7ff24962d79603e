"use strict";
(() => {
  const SCHEMA = 2, SVG = "http://www.w3.org/2000/svg";
  const SCHEMES = { s: "spatial", c: "channel", i: "input channel" };
  const WORDS = { exact: "exact search", "component output": "output energy", "ENC-Map": "ENC-Map", energy: "energy threshold", fixed: "one share for all" };
  const HEADS = { measured: "Accuracy", predicted: "Predicted", macs: "MACs", parameters: "Size", faster: "Time" };
  const $ = (id) => document.getElementById(id);
  const percent = (share) => (100 * share).toFixed(1) + " %";
  const whole = (share) => Math.round(100 * share) + " %";
  let held, own, at, chosen = 0;

  const make = (tag, attributes = {}, text = "", svg = true) => {
    const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    return node;
  };
  const html = (tag, attributes, text) => make(tag, attributes, text, false);

  function say(sentence) {
    $("ex-alert").textContent = sentence;
    $("ex-alert").hidden = !sentence;
  }

  // ---- what the numbers say; `answer` of workbook/explorer.py does the same ----

  function between(chooser, kept, column) {
    let rows = (own.measured[chooser] || []).filter((row) => row[column] !== null), word = "measured";
    if (!rows.length && column === 1) { rows = own.published[chooser] || []; word = "published"; }
    const below = rows.filter((row) => row[0] <= kept).pop(), above = rows.find((row) => row[0] >= kept);
    if (!below || !above) return [null, "none"];
    if (below[0] === above[0]) return [below[column], word];
    const share = (kept - below[0]) / (above[0] - below[0]);
    return [below[column] + share * (above[column] - below[column]), "interpolated"];
  }

  function answer(chooser, place) {
    const table = own.choosers[chooser], kept = own.kept[place];
    if (table.plans[place] === null) return null;
    const lost = table.lost[place], [scale, power] = held.accuracy;
    const less = (points) => lost > held.trusted ? null : Math.min(Math.max(own.dense.accuracy - points / 100, 0), 1);
    // the error of the prediction, and the chance of so many images: `lost_range` of ranks/prediction.py
    const factor = held.spread ** power, far = held.spread * (lost / scale) ** (1 / power);
    const chance = held.deviations * 100 * Math.sqrt(Math.min(Math.sqrt(far / 2), 1) / own.images);
    const [measured, known] = between(chooser, kept, 1), [faster, timed] = between(chooser, kept, 2);
    return {
      plan: table.plans[place].split(" "), macs: table.macs[place] / own.dense.macs,
      parameters: table.parameters[place] / own.dense.parameters, bytes: 4 * table.parameters[place],
      predicted: less(lost), high: less(lost / factor - chance), low: less(lost * factor + chance), measured, known, faster, timed,
    };
  }

  const spelled = (word) => {
    if (word === "-") return "dense";
    const scheme = SCHEMES[word[0]];
    return scheme ? `rank ${word.slice(1)}, ${scheme}` : `rank ${word}`;
  };
  const share = (layer, word) => {
    if (word === "-") return 1;
    const scheme = SCHEMES[word[0]] ? word[0] : "";
    return layer.rank[scheme] * (scheme ? word.slice(1) : word) / layer.macs;
  };

  // ---- marks: a colour and a shape each, so that no one needs to tell colours apart ----

  const SHAPES = [(r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`, (r) => `M0,${-1.2 * r}L${1.2 * r},${r}H${-1.2 * r}z`,
    (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`, (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
    (r) => `M0,${1.2 * r}L${1.2 * r},${-r}H${-1.2 * r}z`];
  const colour = (chooser) => `var(--c${held.choosers.indexOf(chooser)})`;
  function mark(chooser, x, y, radius, filled = true) {
    const path = make("path", { d: SHAPES[held.choosers.indexOf(chooser) % SHAPES.length](radius), transform: `translate(${x},${y})` });
    path.style.stroke = colour(chooser);
    path.style.strokeWidth = 1.5;
    path.style.fill = filled ? colour(chooser) : "var(--paper)";
    return path;
  }
  function swatch(chooser) {
    const svg = make("svg", { class: "ex-mark", viewBox: "-7 -7 14 14", "aria-hidden": "true" });
    svg.append(mark(chooser, 0, 0, 4.5));
    return svg;
  }

  // One place in a figure takes the Tab key; arrow keys lead from point to point.
  function walk(svg, named, points) {
    const rest = named.textContent = "Hover over a point, or press Tab and then the arrow keys, to read its numbers.";
    const show = (point) => { named.textContent = point ? point.node.getAttribute("aria-label") : rest; };
    points.forEach((point, place) => {
      const { node } = point;
      node.setAttribute("role", "img");
      node.dataset.place = place;
      node.setAttribute("tabindex", place ? -1 : 0);
      node.addEventListener("mouseenter", () => { node.classList.add("on"); show(point); });
      node.addEventListener("mouseleave", () => { node.classList.remove("on"); show(); });
      node.addEventListener("focus", () => show(point));
      node.addEventListener("blur", () => show());
      node.addEventListener("click", () => point.pick && point.pick());
      node.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if ((event.key === "Enter" || event.key === " ") && point.pick) { event.preventDefault(); point.pick(); }
        if (!step) return;
        event.preventDefault();
        const next = points[(place + step + points.length) % points.length];
        node.setAttribute("tabindex", -1);
        next.node.setAttribute("tabindex", 0);
        next.node.focus();
      });
    });
  }

  // ---- the first figure: accuracy against size ----

  const known = () => held.choosers.map((chooser) => {
    const rows = (own.measured[chooser] || []).filter((row) => row[1] !== null);
    return rows.length ? [chooser, rows, "measured"] : [chooser, own.published[chooser] || [], "published"];
  });

  function front() {
    // no measured network is both smaller and better
    const all = known().flatMap(([, rows]) => rows).sort((a, b) => a[0] - b[0] || b[1] - a[1]), found = [];
    for (const row of all) if (!found.length || row[1] > found[found.length - 1][1]) found.push(row);
    return found;
  }

  function frame(svg, height, under) {
    const width = Math.max(300, Math.min(900, svg.clientWidth || svg.parentNode.clientWidth || 360));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    return { left: 46, right: width - 20, top: 12, bottom: height - under, width };
  }

  function drawFront() {
    const svg = $("ex-front"), box = frame(svg, 340, 44), dense = own.dense.accuracy;
    const least = Math.min(...own.kept), low = Math.max(0, dense - 0.2), high = Math.min(1, dense + 0.015);
    const x = (kept) => box.left + (box.right - box.left) * Math.log(kept / least) / Math.log(1 / least);
    const y = (value) => box.bottom - (box.bottom - box.top) * (Math.max(value, low) - low) / (high - low);
    const line = (x1, y1, x2, y2, kind, dash = "") => svg.append(make("line", { x1, y1, x2, y2, class: kind, "stroke-dasharray": dash }));
    for (let value = Math.ceil(low * 20) / 20; value <= high; value += 0.05) {
      line(box.left, y(value), box.right, y(value), "grid");
      svg.append(make("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end", class: "soft" }, whole(value)));
    }
    const ticks = least > 0.15 ? [0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1] : [0.02, 0.05, 0.1, 0.2, 0.5, 1];
    for (const kept of ticks.filter((kept) => kept >= least)) {
      line(x(kept), box.bottom, x(kept), box.bottom + 5, "rule");
      svg.append(make("text", { x: x(kept), y: box.bottom + 19, "text-anchor": "middle", class: "soft" }, whole(kept)));
    }
    line(box.left, box.bottom, box.right, box.bottom, "rule");
    svg.append(make("text", { x: (box.left + box.right) / 2, y: box.bottom + 37, "text-anchor": "middle" }, "multiply-accumulates kept"));
    line(box.left, y(dense), box.right, y(dense), "rule", "2 4");
    svg.append(make("text", { x: box.left + 4, y: y(dense) - 4 }, `dense ${percent(dense)}`));
    prediction(svg, x, y);
    const steps = front();
    if (steps.length) {
      const d = steps.map(([kept, value], i) => (i ? `H${x(kept)}V${y(value)}` : `M${x(kept)},${y(value)}`)).join("") + `H${box.right}`;
      svg.append(make("path", { d, fill: "none", class: "rule", "stroke-width": 1.5 }));
    }
    line(x(own.kept[at]), box.top, x(own.kept[at]), box.bottom, "rule");
    const points = [];
    for (const [chooser, rows, word] of [...known()].reverse()) {
      for (const row of rows) {
        const below = row[1] < low, node = mark(chooser, x(row[0]), y(row[1]), 4, !below && word === "measured");
        const told = word === "published" ? `published, mean of ${row[2]} rows` : "measured";
        const time = word === "measured" && row[2] ? `, ${row[2].toFixed(2)} times the speed of the dense network` : "";
        node.setAttribute("aria-label", `${WORDS[chooser]}, ${whole(row[0])} of the multiply-accumulates: accuracy ${percent(row[1])} (${told}${below ? ", below the figure" : ""})${time}`);
        node.dataset.chooser = chooser;
        points.push({ node, pick: () => move(own.kept.indexOf(row[0])), order: [held.choosers.indexOf(chooser), row[0]] });
        svg.append(node);
      }
    }
    const told = (words) => points.some((point) => point.node.getAttribute("aria-label").includes(words));
    const hollow = told("(published") ? "hollow: published rows" : told("below the figure") ? "hollow at the bottom: lower than the figure shows" : "";
    $("ex-below").textContent = hollow;
    points.sort((a, b) => a.order[0] - b.order[0] || a.order[1] - b.order[1]);
    rings(svg, x, y);
    walk(svg, $("ex-front-named"), points);
    const best = steps.map(([kept, value]) => `${percent(value)} at ${whole(kept)}`);
    $("ex-front-title").textContent = points.length
      ? `Accuracy against size: the steps are the Pareto front, on which no network is both smaller and better`
      : "Accuracy against size: predicted only, nothing was measured";
    svg.setAttribute("aria-label", `Accuracy of ${own.title} on ${own.images} test images against the share of multiply-accumulates kept, for ${held.choosers.length} choosers of ranks. Dense: ${percent(dense)}. Pareto front: ${best.join(", ") || "none"}.`);
  }

  function prediction(svg, x, y) {
    const told = own.kept.map((kept, place) => [kept, answer("exact", place)]).filter(([, found]) => found && found.predicted !== null);
    if (!told.length) return;
    const along = (name) => told.map(([kept, found]) => `${x(kept)},${y(found[name])}`);
    const band = make("path", { d: `M${along("high").join("L")}L${along("low").reverse().join("L")}z` });
    band.style.fill = colour("exact");
    band.style.opacity = 0.15;
    const middle = make("path", { d: `M${along("predicted").join("L")}`, fill: "none", "stroke-dasharray": "6 4" });
    middle.style.stroke = colour("exact");
    svg.append(band, middle);
  }

  function rings(svg, x, y) {
    for (const chooser of held.choosers) {
      const found = answer(chooser, at);
      if (!found || found.measured === null) continue;
      const ring = make("circle", { cx: x(own.kept[at]), cy: y(found.measured), r: 7, fill: "none", "pointer-events": "none" });
      ring.style.stroke = colour(chooser);
      ring.style.strokeWidth = 2;
      svg.append(ring);
    }
  }

  // ---- the second figure: what each layer keeps ----

  function drawRanks() {
    const svg = $("ex-ranks"), count = own.layers.length, few = count <= 10, box = frame(svg, few ? 260 : 220, few ? 60 : 30);
    const exact = answer("exact", at), step = (box.right - box.left) / count, points = [];
    const y = (value) => box.bottom - (box.bottom - box.top) * Math.min(value, 1);
    for (const value of [0, 0.5, 1]) {
      svg.append(make("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), class: value ? "grid" : "rule" }));
      svg.append(make("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end", class: "soft" }, whole(value)));
    }
    const others = held.choosers.slice(1).map((chooser) => [chooser, answer(chooser, at)]).filter(([, found]) => found);
    own.layers.forEach((layer, place) => {
      const left = box.left + step * place, wide = Math.max(step * 0.7, 2), value = exact ? share(layer, exact.plan[place]) : 0;
      const bar = make("rect", { x: left + (step - wide) / 2, y: y(value), width: wide, height: box.bottom - y(value) });
      bar.style.fill = colour("exact");
      bar.setAttribute("aria-label", `${layer.name} (${layer.kind}, ${layer.shape}): exact search ${exact ? spelled(exact.plan[place]) : "has no plan"}${exact ? `, ${whole(value)} of the layer's multiply-accumulates` : ""}; ` +
        others.map(([chooser, found]) => `${WORDS[chooser]} ${spelled(found.plan[place])}`).join("; "));
      svg.append(bar);
      points.push({ node: bar });
      for (const [chooser, found] of others) {
        const height = y(share(layer, found.plan[place]));
        if (few) svg.append(mark(chooser, left + step * (0.2 + 0.15 * held.choosers.indexOf(chooser)), height, 3.5, false));
        else svg.append(Object.assign(make("path", { d: `M${left},${height}h${step}` })));
        svg.lastChild.style.stroke = colour(chooser);
        svg.lastChild.style.pointerEvents = "none";
        if (!few) svg.lastChild.style.strokeWidth = 2;
      }
      if (!few) return;
      const under = (y, text, kind) => svg.append(make("text", { x: left + step / 2, y, "text-anchor": "middle", class: kind }, text));
      under(box.bottom + 17, step < 46 ? layer.name.slice(-5) : layer.name, "soft");
      if (exact) under(box.bottom + 34, spelled(exact.plan[place]).replace(/^rank (\d+).*/, step < 60 ? "$1" : "rank $1"), "");
    });
    const axis = few ? (exact ? "layers, with the ranks of the exact search" : "layers") : "layers, from the first to the last";
    svg.append(make("text", { x: (box.left + box.right) / 2, y: box.bottom + (few ? 54 : 22), "text-anchor": "middle" }, axis));
    walk(svg, $("ex-ranks-named"), points);
    const cut = exact ? exact.plan.filter((word) => word !== "-").length : 0;
    $("ex-ranks-title").textContent = exact
      ? `What each layer keeps of its work: the exact search cuts ${cut} of ${count} layers (bars; other choosers as ${few ? "marks" : "lines"})`
      : "What each layer keeps of its work: the exact search has no plan this small";
    svg.setAttribute("aria-label", `Share of its multiply-accumulates that each of ${count} layers keeps, as a bar for the exact search and ${few ? "a mark" : "a line"} for each other chooser.`);
  }

  // ---- tables and sentences ----

  function cell(row, name, value, text, small) {
    const node = html("td", { "data-name": name, "data-label": HEADS[name] }, text);
    if (value !== null && value !== undefined) node.dataset.value = value;
    if (small) node.append(html("small", {}, small));
    row.append(node);
  }

  function fillTable() {
    const body = $("ex-table").tBodies[0];
    body.replaceChildren();
    for (const chooser of held.choosers) {
      const row = html("tr", { "data-chooser": chooser }), found = answer(chooser, at), head = html("th", { scope: "row" });
      head.append(swatch(chooser), " " + WORDS[chooser]);
      row.append(head);
      if (!found) row.append(html("td", { colspan: 5 }, "cannot be this small"));
      else {
        cell(row, "measured", found.measured, found.measured === null ? "–" : percent(found.measured), found.known === "none" ? "not measured" : found.known);
        if (found.predicted === null) cell(row, "predicted", null, "–", "cut too deeply to predict");
        else cell(row, "predicted", found.predicted, percent(found.predicted), `${percent(found.low)} to ${percent(found.high)}`);
        cell(row, "macs", found.macs, percent(found.macs));
        cell(row, "parameters", found.parameters, `${Math.round(found.bytes / 1000)} kB`, `${percent(found.parameters)} of dense`);
        cell(row, "faster", found.faster, found.faster === null ? "–" : `${found.faster.toFixed(2)} × speed`, found.timed === "none" ? "not timed" : found.timed);
      }
      body.append(row);
    }
  }

  function fillLayers() {
    const table = $("ex-layers"), head = html("tr");
    for (const word of ["Layer", "Shape", ...held.choosers.map((chooser) => WORDS[chooser])]) head.append(html("th", { scope: "col" }, word));
    table.tHead.replaceChildren(head);
    const found = held.choosers.map((chooser) => answer(chooser, at));
    table.tBodies[0].replaceChildren(...own.layers.map((layer, place) => {
      const row = html("tr");
      row.append(html("th", { scope: "row" }, layer.name), html("td", {}, layer.shape));
      for (const one of found) row.append(html("td", {}, one ? spelled(one.plan[place]) : "–"));
      return row;
    }));
  }

  function summary() {
    const found = answer("exact", at), kept = whole(own.kept[at]), dense = percent(own.dense.accuracy);
    if (!found) return `The exact search has no plan that keeps only ${kept}: no layer may go below a tenth of its break-even rank. Other choosers may.`;
    const first = `With ${kept} of the multiply-accumulates the exact search`;
    const expected = found.predicted === null ? "" : `${percent(found.predicted)} (${percent(found.low)} to ${percent(found.high)})`;
    const words = { measured: "It was measured", published: "Published rows give", interpolated: "Between two budgets that were measured, it is about" };
    const told = found.measured === null ? "It was not measured here" : `${words[found.known]}${found.known === "measured" ? " at" : ""} ${percent(found.measured)}`;
    const hope = expected ? `is expected to reach ${expected}` : "cuts too deeply for a prediction";
    return `${first} ${hope}. ${told}. The dense network has ${dense}.`;
  }

  function inRange() {
    const all = own.kept.flatMap((_, place) => held.choosers.map((chooser) => answer(chooser, place)));
    const both = all.filter((found) => found && found.known === "measured" && found.predicted !== null);
    if (!both.length) return "";
    const inside = both.filter((found) => found.low <= found.measured && found.measured <= found.high).length;
    return ` Of the ${both.length} accuracies measured on the test images of this network, with all choosers, ${inside} lie inside; this network had a part in the fit.`;
  }

  function made() {
    const from = own.provenance, factors = Object.values(own.measured).flat().some((row) => row[1] !== null);
    const lines = [
      `Choosers see ${from.parameters.calibration_images} training images, without labels. The last layer stays dense, and the first where it is a convolution.`,
      factors ? `Accuracy is of ${own.images} test images. All plans get the same factors, those of compress without refinement. Nothing was trained after the cut. A budget chosen by these numbers is chosen on test images.`
        : `Accuracy is of published rows (notebooks 05 and 06, factors found in sequence, means over draws of calibration images). Their plans were made from other calibration images than those shown here, so they may differ a little.`,
      `Predicted accuracy is that of lowrank_utils.predict. Its range allows for the error of the prediction and for the chance of ${own.images} test images. ${held.covered[0]} of ${held.covered[1]} measured losses of networks left out of the fit lay inside, on 143 to 2 000 validation images and with plans of the exact search. For more images that was not measured.${inRange()}`,
      "Time is processor time for 64 images on one thread, beside the dense network; 2 × speed is half the time.",
      "Size counts four bytes a parameter. Interpolated: on a straight line between two budgets that were measured.",
      `Data ${from.data_fingerprint}, torch ${from.versions.torch}, code ${from.code}, ${from.finished.slice(0, 10)}.`,
    ];
    $("ex-made").replaceChildren(...lines.map((line) => html("p", {}, line)));
  }

  // ---- the reader's choices ----

  function address() {
    const kept = Math.round(100 * own.kept[at]);
    try { history.replaceState(null, "", `?network=${own.name}&kept=${kept}`); } catch { /* some browsers refuse it for files */ }
  }

  function move(place) {
    at = Math.max(0, Math.min(own.kept.length - 1, place));
    const slider = $("ex-kept"), words = `${whole(own.kept[at])} of the multiply-accumulates`;
    slider.value = at;
    slider.setAttribute("aria-valuetext", words);
    $("ex-budget").textContent = words;
    $("ex-summary").textContent = summary();
    const focused = $("ex-front").contains(document.activeElement) ? document.activeElement.dataset.place : undefined;
    drawFront();
    if (focused !== undefined) {
      for (const node of $("ex-front").querySelectorAll("[tabindex]")) node.setAttribute("tabindex", node.dataset.place === focused ? 0 : -1);
      $("ex-front").querySelector("[tabindex='0']").focus();
    }
    drawRanks();
    fillTable();
    fillLayers();
    window.explorerDrawn ??= performance.now();
  }

  function choose(name, kept, asked = false) {
    own = held.networks.find((network) => network.name === name);
    $("ex-network").value = name;
    $("ex-kept").max = own.kept.length - 1;
    made();
    let place = own.kept.indexOf(kept);
    const possible = own.choosers.exact.plans.findIndex((plan) => plan !== null);
    if (place < 0) place = own.kept.reduce((best, share, i) => Math.abs(share - kept) < Math.abs(own.kept[best] - kept) ? i : best, 0);
    move(asked ? place : Math.max(place, possible));
  }

  function readData() {
    let found = null;
    try { found = JSON.parse($("explorer-data").textContent); } catch { /* said below */ }
    if (!found || !Array.isArray(found.networks) || !found.networks.length)
      return say("The numbers of this page are cut short or damaged, so nothing can be shown: get the page again, or build it with make site.");
    if (found.schema !== SCHEMA)
      return say(`The numbers of this page are of version ${found.schema}, and its script reads version ${SCHEMA}: build the page again with make site.`);
    return found;
  }

  function begin() {
    held = readData();
    if (!held) return;
    $("ex-all").hidden = false;
    for (const network of held.networks) $("ex-network").append(html("option", { value: network.name }, network.title));
    for (const chooser of held.choosers) {
      const span = html("span");
      span.append(swatch(chooser), WORDS[chooser]);
      $("ex-key").append(span);
    }
    const line = html("span"), dash = make("svg", { class: "ex-mark ex-dash", viewBox: "0 0 30 14", "aria-hidden": "true" });
    dash.append(make("rect", { width: 30, height: 14, opacity: 0.15 }), make("path", { d: "M0,7h30", "stroke-dasharray": "6 4", "stroke-width": 1.5 }));
    line.append(dash, `exact search, predicted, with its range`);
    $("ex-key").append(line, html("span", { id: "ex-below" }));
    const asked = new URLSearchParams(location.search), first = held.networks[0], name = asked.get("network");
    const there = held.networks.some((network) => network.name === name);
    if (name !== null && !there) say(`There is no network “${name}” here, so the page shows ${first.title}. It knows: ${held.networks.map((n) => n.name).join(", ")}.`);
    const kept = Number.parseFloat(asked.get("kept")) / 100;
    choose(there ? name : first.name, kept > 0 && kept <= 1 ? Math.round(100 * kept) / 100 : 0.25, kept > 0);
    $("ex-network").addEventListener("change", (event) => { say(""); choose(event.target.value, own.kept[at]); address(); });
    $("ex-kept").addEventListener("input", (event) => { move(Number(event.target.value)); address(); });
    let width = window.innerWidth;
    window.addEventListener("resize", () => { if (width !== window.innerWidth) { width = window.innerWidth; drawFront(); drawRanks(); } });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
