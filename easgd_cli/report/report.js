// Makes the page's curves and tables ones to work with. Where scripts are off, the page shows static pictures instead.
(() => {
  "use strict";
  const DASHES = {"-": [], "--": [8, 4], ":": [2, 3], "-.": [8, 3, 2, 3]};
  const RANGES = 8; // at most, of curves in a panel: more would hide each other
  const TOLD = 10; // curves at most beside the pointer: the nearest
  const root = document.documentElement;

  // Every text of a run's comes in here as text, never as markup.
  function make(tag, parent, text = "", className = "") {
    const node = document.createElement(tag);
    node.textContent = text;
    node.className = className;
    parent.append(node);
    return node;
  }

  function number(v) {
    if (Math.abs(v) >= 1e9) return v.toExponential(3);
    return Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(4));
  }

  function curves(figure, data) {
    const box = make("div", figure, "", "plots");
    figure.prepend(box);
    const tools = make("div", box, "", "tools");
    const legend = make("div", box, "", "legend");
    const grid = make("div", box);
    const tip = make("div", box, "", "tip");
    const shown = data.lines.map(() => true);
    const logarithmic = data.metrics.map((metric) => metric.logarithmic);
    const zoomed = data.rows.map(() => null); // of each row, from and to
    let plots = [];
    let pointed = null; // the plot under the pointer

    const everything = (chosen) => { shown.fill(chosen); draw(); };
    const whole = make("button", tools, "Whole range");
    whole.onclick = () => { zoomed.fill(null); draw(); };
    if (shown.length > 1) {
      make("button", tools, "All").onclick = () => everything(true);
      make("button", tools, "None").onclick = () => everything(false);
    }
    data.metrics.forEach((metric, m) => {
      const values = data.rows.flatMap((row) => row.panels[m].flatMap((c) => c.mean)).filter((v) => v !== null);
      const label = make("label", tools);
      const check = make("input", label);
      label.append(`log ${metric.name}`);
      Object.assign(check, {type: "checkbox", checked: metric.logarithmic});
      check.disabled = values.some((v) => v < 0) || !values.some((v) => v > 0);
      check.onchange = () => { logarithmic[m] = check.checked; draw(); };
    });
    const chips = data.lines.map((line, i) => {
      const chip = make("button", legend);
      make("i", chip);
      make("span", chip, line.name);
      chip.title = "Click to show or hide; double click for this one only";
      chip.onclick = () => { shown[i] = !shown[i]; draw(); };
      chip.ondblclick = () => { shown.fill(false); shown[i] = true; draw(); };
      return chip;
    });
    legend.hidden = chips.length < 2;

    // Black is the colour of text, which is white in the dark.
    const colour = (line) => (line.colour === "#000000" ? getComputedStyle(root).color : line.colour);

    function swatch(node, line) {
      let at = 0;
      const stops = DASHES[line.dash].map((length, i) => `${i % 2 ? "transparent" : colour(line)} ${at}px ${(at += length)}px`);
      node.style.background = stops.length ? `repeating-linear-gradient(90deg, ${stops})` : colour(line);
    }

    const visible = (row, m) => row.panels[m].filter((curve) => shown[curve.line]);
    const ranged = (those) => those.length <= RANGES;

    function extent(r) { // along x: rows share it, but for bytes
      const rows = data.shares_x ? data.rows : [data.rows[r]];
      const ends = rows.flatMap((row) => row.panels.flat().flatMap((c) => [c.x[0], c.x.at(-1)]));
      return zoomed[r] ?? [Math.min(...ends), Math.max(...ends)];
    }

    function limits(m) { // of a metric: of what is visible, in all rows
      let [least, most] = [Infinity, -Infinity];
      data.rows.forEach((row, r) => {
        const those = visible(row, m);
        const [from, to] = extent(r);
        for (const c of those) {
          for (const values of c.range && ranged(those) ? c.range : [c.mean]) {
            values.forEach((v, i) => {
              if (v === null || c.x[i] < from || c.x[i] > to || (logarithmic[m] && v <= 0)) return;
              least = Math.min(least, v);
              most = Math.max(most, v);
            });
          }
        }
      });
      if (least > most) return logarithmic[m] ? [0.1, 1] : [0, 1];
      if (logarithmic[m]) return [least / 1.2, most * 1.2];
      const margin = 0.05 * (most - least) || Math.abs(most) / 2 || 1;
      return [least - margin, most + margin];
    }

    function ticks(least, most) { // of a logarithmic axis
      const found = [];
      for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power++) {
        found.push(...(most < 500 * least ? [1, 2, 5] : [1]).map((digit) => +`${digit}e${power}`));
      }
      const within = found.filter((v) => v >= least && v <= most);
      return within.length > 1 ? within : [least, Math.sqrt(least * most), most].map((v) => +v.toPrecision(2));
    }

    function nearest(values, i) { // the position of the value nearest to position i; curves have values at their own only
      for (let away = 0; away < values.length; away++) {
        if (values[i - away] != null) return i - away;
        if (values[i + away] != null) return i + away;
      }
      return null;
    }

    function plot(cell, row, r, m) {
      const those = visible(row, m);
      const tables = those.map((c) => [c.x, c.mean, ...(c.range ?? [c.mean, c.mean])]);
      const axis = {stroke: getComputedStyle(root).color, grid: {stroke: getComputedStyle(grid).borderColor, width: 1}, ticks: {show: false}};
      axis.font = "12px system-ui, sans-serif";
      const log = {distr: 3, range: () => limits(m)};
      const edge = {stroke: "transparent", width: 0, points: {show: false}};
      const series = those.flatMap((c) => {
        const line = data.lines[c.line];
        return [{stroke: colour(line), width: 2, dash: DASHES[line.dash], points: {show: false}}, edge, edge];
      });
      const bands = those.map((c, k) => ({series: [3 * k + 3, 3 * k + 2], fill: `color-mix(in srgb, ${colour(data.lines[c.line])} 18%, transparent)`}));
      const made = new uPlot({
        width: cell.clientWidth, height: 250, legend: {show: false},
        scales: {x: {time: false, range: () => extent(r)}, y: logarithmic[m] ? log : {range: () => limits(m)}},
        axes: [
          {...axis, label: data.x, labelFont: axis.font, labelSize: 18, size: 32, space: 60, values: (u, vs) => vs.map(number)},
          {
            ...axis, values: (u, vs) => vs.map(number), size: (u, texts) => 14 + 7 * Math.max(3, ...(texts ?? []).map((t) => t.length)),
            ...(logarithmic[m] ? {splits: (u, i, least, most) => ticks(least, most), filter: (u, splits) => splits} : {}),
          },
        ],
        series: [{}, ...series], bands: ranged(those) ? bands : [],
        cursor: {
          y: false, sync: {key: data.shares_x ? "all" : `row ${r}`}, drag: {x: true, y: false, setScale: false},
          dataIdx: (u, s, i) => (s ? nearest(u.data[s], i) : i),
          bind: {dblclick: () => () => whole.onclick()},
        },
        hooks: {
          setCursor: [(u) => u === pointed && tell(u, those, row, m)],
          setSelect: [(u) => {
            if (u !== pointed || u.select.width < 5) return;
            const chosen = [u.select.left, u.select.left + u.select.width].map((at) => u.posToVal(at, "x"));
            zoomed.forEach((_, other) => { if (data.shares_x || other === r) zoomed[other] = chosen; });
            requestAnimationFrame(draw);
          }],
        },
      }, tables.length ? uPlot.join(tables, tables.map(() => [0, 2, 2, 2])) : [[]], cell);
      made.over.addEventListener("mouseenter", () => { pointed = made; });
      return made;
    }

    function tell(u, those, row, m) { // the values beside the pointer
      const found = those.map((c, k) => ({c, at: u.cursor.idxs[3 * k + 1], k})).filter(({at}) => at != null);
      tip.hidden = u.cursor.left < 0 || !found.length;
      if (tip.hidden) return;
      for (const one of found) {
        [one.x, one.value, one.least, one.most] = [0, 1, 2, 3].map((s) => u.data[s && 3 * one.k + s][one.at]);
        one.away = Math.abs(u.valToPos(one.value, "y") - u.cursor.top);
      }
      const told = found.sort((a, b) => a.away - b.away).slice(0, TOLD).sort((a, b) => b.value - a.value);
      const together = told.every((one) => one.x === told[0].x);
      tip.replaceChildren();
      make("b", tip, [row.title, data.metrics[m].name].filter(Boolean).join(", "));
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
      whole.hidden = zoomed.every((one) => one === null);
      chips.forEach((chip, i) => {
        chip.setAttribute("aria-pressed", shown[i]);
        swatch(chip.firstChild, data.lines[i]);
      });
      const cells = data.rows.flatMap((row, r) => {
        if (row.title) make("h3", grid, row.title);
        const across = make("div", grid, "", "row");
        return data.metrics.map((metric, m) => {
          const cell = make("div", across);
          make("div", cell, metric.name, "metric");
          return [cell, row, r, m];
        });
      });
      plots = cells.map((cell) => plot(...cell)); // once all cells are there, so that each has its width
    }

    let width = 0;
    new ResizeObserver(() => { // also at first
      if (box.clientWidth && box.clientWidth !== width) requestAnimationFrame(draw);
      width = box.clientWidth;
    }).observe(box);
    return draw;
  }

  // A click sorts up, another down, a third as it was. What is no number comes after those that are, nothing at the end.
  function sortable(table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];
    const key = (row, i) => {
      const text = row.cells[i].textContent;
      const found = /^×?(-?[\d.,]+(?:e[-+]?\d+)?)(?: ±.*| \(.*)?$/.exec(text);
      const value = found ? Number(found[1].replaceAll(",", "")) : NaN;
      return Number.isNaN(value) ? text : value;
    };
    const compare = (a, b, sign) => {
      if (a === "-" || b === "-") return (a === "-") - (b === "-");
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", {numeric: true}));
    };
    headings.forEach((heading, i) => {
      const button = document.createElement("button");
      button.append(...heading.childNodes);
      heading.append(button);
      button.onclick = () => {
        const next = {ascending: "descending", descending: "none"}[heading.ariaSort] ?? "ascending";
        headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? next : "none"));
        const sign = {ascending: 1, descending: -1}[next];
        body.append(...(sign ? [...rows].sort((a, b) => compare(key(a, i), key(b, i), sign)) : rows));
      };
    });
  }

  root.classList.add("live");
  document.querySelectorAll("table").forEach(sortable);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const toggle = make("button", document.body, "", "theme");
  let theme = null; // as the system has it
  const redraws = [];
  function paint() {
    root.dataset.theme = theme ?? (dark.matches ? "dark" : "light");
    toggle.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
    redraws.forEach((draw) => draw());
  }
  toggle.onclick = () => { theme = toggle.textContent.toLowerCase(); paint(); };
  dark.addEventListener("change", paint);
  paint();
  const data = document.getElementById("data");
  if (data) redraws.push(curves(data.parentElement, JSON.parse(data.textContent)));
})();
