// Makes the page's tables sortable, and draws curves that can be hidden, read off and zoomed. Without scripts the page
// shows the static figures. Texts are inserted by textContent, never as markup, since names come from a user's runs.
(() => {
  "use strict";
  const DASHES = {"-": [], "--": [8, 4], ":": [2, 3], "-.": [8, 3, 2, 3]};
  const RANGES = 8; // the most curves in a panel that have ranges: more would hide each other
  const TOLD = 10; // the most curves whose values are shown beside the pointer: the nearest ones
  const FONT = "12px system-ui, sans-serif";
  const root = document.documentElement;

  function make(tag, parent, text = "", className = "") {
    const node = document.createElement(tag);
    Object.assign(node, {textContent: text, className});
    parent.append(node);
    return node;
  }

  function number(v) {
    if (Math.abs(v) >= 1e9) return v.toExponential(3);
    return Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(4));
  }

  // Makes the panels of one figure. `data`: written by page.py. draw() makes all panels anew from the state kept here.
  function curves(figure, data) {
    const shown = data.lines.map(() => true);
    const logarithmic = data.metrics.map((metric) => metric.logarithmic);
    let zoomed = {}; // the visible [from, to] of each group: the rows that share an x axis
    const group = (r) => (data.shares_x ? "all" : `row ${r}`);
    let plots = [];
    let pointed = null; // the plot under the pointer

    const box = make("div", figure, "", "plots");
    const legend = make("div", box, "", "tools");
    const tools = make("div", box, "", "tools");
    const grid = make("div", box);
    const tip = make("div", box, "", "tip");
    figure.prepend(box);
    const chips = data.lines.map((line, i) => {
      const chip = make("button", legend);
      make("i", chip);
      make("span", chip, line.name);
      chip.title = "Click: show or hide. Double click: only this one.";
      chip.onclick = () => { shown[i] = !shown[i]; draw(); };
      chip.ondblclick = () => { shown.fill(false)[i] = true; draw(); };
      return chip;
    });
    legend.hidden = chips.length < 2;
    data.metrics.forEach((metric, m) => {
      const values = data.rows.flatMap((row) => row.panels[m].flatMap((c) => c.mean)).filter((v) => v !== null);
      const label = make("label", tools);
      const check = make("input", label);
      label.append(`log ${metric.name}`);
      Object.assign(check, {type: "checkbox", checked: logarithmic[m]});
      check.onchange = () => { logarithmic[m] = check.checked; draw(); };
      check.disabled = values.some((v) => v < 0) || !values.some((v) => v > 0);
    });
    const reset = make("button", tools, "Show all");
    reset.onclick = () => { shown.fill(true); zoomed = {}; draw(); };

    // A black line is drawn in the colour of text, which is white in the dark theme.
    const colour = (line) => (line.colour === "#000000" ? getComputedStyle(root).color : line.colour);
    const visible = (row, m) => row.panels[m].filter((c) => shown[c.line]);

    function swatch(node, line) {
      let at = 0;
      const part = (length, i) => `${i % 2 ? "transparent" : colour(line)} ${at}px ${(at += length)}px`;
      const stops = DASHES[line.dash].map(part);
      node.style.background = stops.length ? `repeating-linear-gradient(90deg, ${stops})` : colour(line);
    }

    function extent(r) { // the visible range along x
      const rows = data.rows.filter((_, other) => group(other) === group(r));
      const ends = rows.flatMap((row) => row.panels.flat().flatMap((c) => [c.x[0], c.x.at(-1)]));
      return zoomed[group(r)] ?? [Math.min(...ends), Math.max(...ends)];
    }

    function limits(m) { // the range along y that holds all visible values of a metric, in every row
      let [least, most] = [Infinity, -Infinity];
      data.rows.forEach((row, r) => {
        const [from, to] = extent(r);
        const those = visible(row, m);
        for (const c of those) {
          for (const values of c.range && those.length <= RANGES ? c.range : [c.mean]) {
            values.forEach((v, i) => {
              if (v === null || c.x[i] < from || c.x[i] > to || (logarithmic[m] && v <= 0)) return;
              [least, most] = [Math.min(least, v), Math.max(most, v)];
            });
          }
        }
      });
      if (least > most) return [0.1, 1]; // no value is visible
      const margin = 0.05 * (most - least) || Math.abs(most) / 2 || 1;
      return logarithmic[m] ? [least / 1.2, most * 1.2] : [least - margin, most + margin];
    }

    function ticks(least, most) { // the ticks of a logarithmic axis
      const found = [];
      for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power++) {
        found.push(...(most < 500 * least ? [1, 2, 5] : [1]).map((digit) => Number(`${digit}e${power}`)));
      }
      const within = found.filter((v) => v >= least && v <= most);
      return within.length > 1 ? within : [least, Math.sqrt(least * most), most].map((v) => Number(v.toPrecision(2)));
    }

    function zoom(r, chosen) {
      zoomed[group(r)] = chosen;
      requestAnimationFrame(draw); // later: draw() removes the plot whose event is being handled now
    }

    // The position nearest to i at which the curve has a point: undefined is no point, null one that is not finite.
    function nearest(values, i) {
      for (let away = 0; away < values.length; away++) {
        for (const at of [i - away, i + away]) if (values[at] !== undefined) return at;
      }
      return null;
    }

    // The series are, for each curve, its mean and the two edges of its range; edges show only as a band between them.
    function plot(cell, row, r, m) {
      const those = visible(row, m);
      const tables = those.map((c) => [c.x, c.mean, ...(c.range ?? [])]);
      const before = (k) => tables.slice(0, k).reduce((sum, table) => sum + table.length - 1, 0);
      const firsts = tables.map((_, k) => 1 + before(k)); // the series of the means; series 0 is x
      const [text, grey] = [getComputedStyle(root).color, getComputedStyle(grid).borderColor];
      const points = {show: false};
      const edge = {stroke: "transparent", width: 0, points};
      const look = (c) => data.lines[c.line];
      const line = (c) => ({stroke: colour(look(c)), width: 2, dash: DASHES[look(c).dash], points});
      const band = (c, first) => (
        {series: [first + 2, first + 1], fill: `color-mix(in srgb, ${colour(look(c))} 18%, transparent)`});
      const bands = those.flatMap((c, k) => (c.range && those.length <= RANGES ? [band(c, firsts[k])] : []));
      const values = (u, at) => at.map(number);
      const axis = {stroke: text, grid: {stroke: grey, width: 1}, ticks: {show: false}, font: FONT, values};
      const size = (u, texts) => 14 + 7 * Math.max(3, ...(texts ?? []).map((t) => t.length));
      const log = logarithmic[m] && {splits: (u, i, least, most) => ticks(least, most), filter: (u, splits) => splits};
      const made = new uPlot({
        width: cell.clientWidth, height: 250, legend: {show: false},
        scales: {x: {time: false, range: () => extent(r)}, y: {distr: log ? 3 : 1, range: () => limits(m)}},
        axes: [{...axis, label: data.x, labelFont: FONT, labelSize: 18, size: 32, space: 60}, {...axis, size, ...log}],
        series: [{}, ...those.flatMap((c) => (c.range ? [line(c), edge, edge] : [line(c)]))], bands,
        cursor: {
          y: false, sync: {key: group(r)}, drag: {x: true, y: false, setScale: false},
          bind: {dblclick: () => () => zoom(r)},
          dataIdx: (u, s, i) => (s ? nearest(u.data[s], i) : i),
        },
        hooks: {
          setCursor: [(u) => u === pointed && tell(u, those, firsts, [row.title, data.metrics[m].name])],
          setSelect: [(u) => {
            const {left, width} = u.select;
            if (u === pointed && width > 5) zoom(r, [left, left + width].map((at) => u.posToVal(at, "x")));
          }],
        },
      }, tables.length ? uPlot.join(tables, tables.map(() => [0, 2, 2, 2])) : [[]], cell); // 2: null is a gap
      made.over.addEventListener("mouseenter", () => { pointed = made; });
      return made;
    }

    function tell(u, those, firsts, title) { // shows the curves' values beside the pointer
      const found = those.flatMap((c, k) => {
        const at = u.cursor.idxs[firsts[k]];
        const [x, value, least, most] = [0, firsts[k], firsts[k] + 1, firsts[k] + 2].map((s) => u.data[s]?.[at]);
        if (value == null) return [];
        return {c, x, value, least, most, away: Math.abs(u.valToPos(value, "y") - u.cursor.top)};
      });
      tip.hidden = u.cursor.left < 0 || !found.length;
      if (tip.hidden) return;
      const told = found.sort((a, b) => a.away - b.away).slice(0, TOLD).sort((a, b) => b.value - a.value);
      const together = told.every((one) => one.x === told[0].x);
      tip.replaceChildren();
      make("b", tip, title.filter(Boolean).join(", "));
      if (together) make("div", tip, `${data.x}: ${number(told[0].x)}`);
      const lines = make("table", tip);
      for (const {c, x, value, least, most} of told) {
        const line = make("tr", lines);
        swatch(make("i", make("td", line)), data.lines[c.line]);
        make("td", line, data.lines[c.line].name);
        make("td", line, number(value), "number");
        make("td", line, c.range ? `${number(least)} – ${number(most)}` : "", "number");
        if (!together) make("td", line, `at ${number(x)}`, "number");
      }
      if (found.length > told.length) make("div", tip, `and ${found.length - told.length} more`);
      const [over, around] = [u.over.getBoundingClientRect(), box.getBoundingClientRect()];
      const at = over.left - around.left + u.cursor.left;
      const left = at > around.width / 2 ? at - tip.offsetWidth - 16 : at + 16;
      tip.style.left = `${Math.max(0, Math.min(left, around.width - tip.offsetWidth))}px`;
      tip.style.top = `${over.top - around.top + u.cursor.top + 16}px`;
    }

    function draw() {
      plots.forEach((one) => one.destroy());
      grid.replaceChildren();
      tip.hidden = true;
      reset.hidden = shown.every(Boolean) && !Object.values(zoomed).some(Boolean);
      chips.forEach((chip, i) => {
        chip.setAttribute("aria-pressed", shown[i]);
        swatch(chip.firstChild, data.lines[i]);
      });
      const cells = data.rows.flatMap((row, r) => {
        if (row.title) make("h3", grid, row.title);
        const across = make("div", grid, "", "row");
        return data.metrics.map((metric, m) => {
          const cell = make("div", across);
          make("b", cell, metric.name);
          return [cell, row, r, m];
        });
      });
      plots = cells.map((cell) => plot(...cell)); // when all cells exist and so have their final widths
    }

    let width = 0;
    new ResizeObserver(() => { // called once at the start, too
      if (box.clientWidth && box.clientWidth !== width) requestAnimationFrame(draw);
      width = box.clientWidth;
    }).observe(box);
    return draw;
  }

  // A click on a heading sorts by its column, a second click reverses the order. Numbers come first, then texts, then
  // cells without a value.
  function sortable(table) {
    const key = (row, i) => {
      const text = row.cells[i].textContent;
      const found = /^×?(-?[\d.,]+(?:e[-+]?\d+)?)(?: ±.*| \(.*)?$/.exec(text); // `×1.50`, `2.50 ± 0.71 (2 of 3)`
      const value = found ? Number(found[1].replaceAll(",", "")) : NaN;
      return text === "-" ? [2, 0, ""] : Number.isNaN(value) ? [1, 0, text] : [0, value, ""];
    };
    const compare = (a, b) => a[1] - b[1] || a[2].localeCompare(b[2], "en", {numeric: true});
    const [body, headings] = [table.tBodies[0], [...table.tHead.rows[0].cells]];
    headings.forEach((heading, i) => {
      const button = document.createElement("button");
      button.append(...heading.childNodes);
      heading.append(button);
      button.onclick = () => {
        const sign = heading.ariaSort === "ascending" ? -1 : 1;
        headings.forEach((other) => { other.ariaSort = null; });
        heading.ariaSort = sign > 0 ? "ascending" : "descending";
        const keyed = [...body.rows].map((row) => [row, key(row, i)]);
        keyed.sort(([, a], [, b]) => a[0] - b[0] || sign * compare(a, b));
        body.append(...keyed.map(([row]) => row));
      };
    });
  }

  root.classList.add("live");
  document.querySelectorAll("table").forEach(sortable);
  const data = document.getElementById("data");
  const redraw = data ? curves(data.parentElement, JSON.parse(data.textContent)) : () => {};
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const toggle = make("button", document.body, "", "theme");
  function paint(theme) {
    root.dataset.theme = theme;
    toggle.textContent = theme === "dark" ? "Light" : "Dark";
    redraw();
  }
  const follow = () => paint(dark.matches ? "dark" : "light");
  toggle.onclick = () => paint(toggle.textContent.toLowerCase());
  dark.onchange = follow;
  follow();
})();
