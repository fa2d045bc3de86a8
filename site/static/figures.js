// Draws the figures of the page "Try it": picks rows of tables that Python computed (site/figures.py), computes nothing.
// Each figure is a <div class="moving" id="figure-NAME"> that holds its data as JSON. No dependency.
"use strict";

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 4", "4 2"];
  const MARKS = ["circle", "square", "triangle", "diamond", "circle", "square"];

  // A table where the controls stand: names of controls are settled, the others stay as lists.
  function pick(figure, name, state) {
    const table = figure.tables[name];
    const from = typeof table.values === "string" ? figure.tables[table.values].values : table.values;
    const walk = (values, names) => {
      if (!names.length) return values;
      const [first, ...rest] = names;
      return first in state ? walk(values[state[first]], rest) : values.map((one) => walk(one, rest));
    };
    return walk(from, table.by);
  }

  const resolve = (figure, field, state) =>
    typeof field === "string" && field.startsWith("@") ? pick(figure, field.slice(1), state) : field;

  const asList = (value) => (Array.isArray(value) ? value : [value]);

  function sentence(figure, state) {
    const fill = (_, name, digits) => {
      const control = figure.controls.find((one) => one.name === name);
      if (control) return control.texts[state[name]];
      const value = pick(figure, name, state);
      return typeof value === "string" ? value : value.toFixed(Number(digits ?? 2));
    };
    return figure.sentence.replace(/\{(\w+)(?::(\d))?\}/g, fill).replace(/(^|[\s([])-(?=\d)/g, "$1−");
  }

  // Scales and ticks.

  const BEND = {
    linear: (value) => value,
    log: Math.log,
    sqrt: (value) => Math.sqrt(Math.max(value, 0)),
  };

  function scale(axis, [low, high], [from, to]) {
    const bend = BEND[axis.scale ?? "linear"];
    const start = bend(low), span = bend(high) - start || 1;
    return (value) => from + ((bend(value) - start) / span) * (to - from);
  }

  function ticks(axis, [low, high], most) {
    if (axis.scale === "log") {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const part of [1, 2, 5]) found.push(part * 10 ** power);
      const inside = found.filter((at) => at >= low * 0.999 && at <= high * 1.001);
      return inside.length > most ? inside.filter((at) => /^[1]/.test(at.toExponential())) : inside;
    }
    const rough = (high - low) / most, size = 10 ** Math.floor(Math.log10(rough));
    const step = size * [1, 2, 2.5, 5, 10].find((part) => size * part >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
    return found;
  }

  function written(axis, value) {
    const number = axis.percent ? 100 * value : value;
    return String(Number(number.toPrecision(6))).replace("-", "−") + (axis.percent ? "%" : "");
  }

  // Drawing.

  function element(name, attributes, parent, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent?.append(made);
    return made;
  }

  function mark(parent, shape, x, y, size, attributes) {
    const [r, d] = [size, size * 1.3];
    const paths = {
      circle: `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
      square: `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
      triangle: `M${x},${y - d}L${x + d},${y + r}H${x - d}Z`,
      diamond: `M${x},${y - d}L${x + d},${y}L${x},${y + d}L${x - d},${y}Z`,
    };
    return element("path", { d: paths[shape], ...attributes }, parent);
  }

  function drawPanel(figure, panel, state, width) {
    const get = (field) => resolve(figure, field, state);
    const names = panel.y.names;
    const groups = panel.layers.filter((layer) => layer.kind === "bars").length;
    const left = names ? 12 : 62, right = 14, top = 8, bottom = 46;
    const row = 22 + 16 * groups;
    const height = names ? top + names.length * row + bottom : 300;
    const svg = element("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const plot = { left, right: width - right, top, bottom: height - bottom };
    const xDomain = get(panel.x.domain);
    const x = scale(panel.x, xDomain, [plot.left, plot.right]);

    const xTicks = ticks(panel.x, xDomain, Math.max(3, Math.floor((plot.right - plot.left) / 70)));
    for (const at of xTicks) {
      element("line", { x1: x(at), x2: x(at), y1: plot.top, y2: plot.bottom, class: "grid" }, svg);
      const anchor = x(at) > plot.right - 12 ? "end" : x(at) < 24 ? "start" : "middle";
      element("text", { x: x(at), y: plot.bottom + 16, "text-anchor": anchor }, svg, written(panel.x, at));
    }
    const middle = (plot.left + plot.right) / 2;
    element("text", { x: middle, y: height - 8, "text-anchor": "middle", class: "label" }, svg, get(panel.x.label));

    if (names) {
      drawBars(figure, panel, state, svg, plot, x, row);
      return { svg, legend: legendOf(panel, get) };
    }

    const yDomain = get(panel.y.domain);
    const y = scale(panel.y, yDomain, [plot.bottom, plot.top]);
    for (const at of ticks(panel.y, yDomain, 6)) {
      element("line", { x1: plot.left, x2: plot.right, y1: y(at), y2: y(at), class: "grid" }, svg);
      element("text", { x: plot.left - 6, y: y(at) + 4, "text-anchor": "end" }, svg, written(panel.y, at));
    }
    const turned = { transform: `translate(13,${(plot.top + plot.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" };
    element("text", { ...turned, class: "label" }, svg, get(panel.y.label));

    const id = `clip-${figure.name}-${figure.panels.indexOf(panel)}`;
    const clip = element("clipPath", { id }, svg);
    element("rect", { x: plot.left - 7, y: plot.top - 7, width: plot.right - plot.left + 14,
      height: plot.bottom - plot.top + 14 }, clip);
    const canvas = element("g", { "clip-path": `url(#${id})` }, svg);
    let colour = 0;
    for (const layer of panel.layers) {
      if (layer.kind === "rule") {
        const at = get(layer.at);
        const ends = layer.axis === "x" ? { x1: x(at), x2: x(at), y1: plot.top, y2: plot.bottom }
          : { y1: y(at), y2: y(at), x1: plot.left, x2: plot.right };
        element("line", { ...ends, class: `rule rule-${layer.axis}` }, canvas);
        if (layer.axis === "y" && layer.name)
          element("text", { x: plot.right - 4, y: y(at) - 4, "text-anchor": "end" }, canvas, layer.name);
        continue;
      }
      const [xs, ys] = [asList(get(layer.x)), asList(get(layer.y))];
      if (layer.kind === "point") {
        ys.forEach((value, i) => mark(canvas, "circle", x(xs[i]), y(value), 6,
          { class: "point", "data-x": xs[i], "data-y": value }));
        continue;
      }
      const place = layer.quiet ? "quiet" : `series-${colour}`;
      const dash = layer.quiet ? "5 4" : DASHES[colour % DASHES.length];
      const points = xs.map((value, i) => `${x(value).toFixed(2)},${y(ys[i]).toFixed(2)}`).join(" ");
      element("polyline", { points, class: `curve ${place}`, "stroke-dasharray": dash, "data-y": ys.join(" ") }, canvas);
      if (layer.low) {
        const [low, high] = [get(layer.low), get(layer.high)];
        xs.forEach((at, i) => element("line", { x1: x(at), x2: x(at), y1: y(low[i]), y2: y(high[i]),
          class: `whisker ${place}` }, canvas));
      }
      if (layer.dots)
        xs.forEach((at, i) => mark(canvas, MARKS[colour % MARKS.length], x(at), y(ys[i]), 4, { class: `dot ${place}` }));
      if (!layer.quiet) colour++;
    }
    return { svg, legend: legendOf(panel, get) };
  }

  function drawBars(figure, panel, state, svg, plot, x, row) {
    const get = (field) => resolve(figure, field, state);
    const layers = panel.layers.filter((layer) => layer.kind === "bars");
    const names = panel.y.names, marked = panel.y.marked ? state[panel.y.marked] : -1;
    names.forEach((name, i) => {
      const above = plot.top + i * row;
      element("text", { x: plot.left, y: above + 15, class: i === marked ? "name marked" : "name" }, svg, name);
      layers.forEach((layer, j) => {
        const value = asList(get(layer.value))[i], y = above + 20 + 16 * j;
        const place = layer.quiet ? "quiet" : `series-${j && layers[0].quiet ? j - 1 : j}`;
        if (value === null) {
          element("text", { x: plot.left, y: y + 10 }, svg, "not reached");
          return;
        }
        if (!layer.dots)
          element("rect", { x: plot.left, y, width: Math.max(0, x(value) - plot.left), height: 12,
            class: `bar ${place}`, "data-value": value }, svg);
        if (layer.low) {
          const [low, high] = [asList(get(layer.low))[i], asList(get(layer.high))[i]];
          element("line", { x1: x(low), x2: x(high), y1: y + 6, y2: y + 6, class: "interval" }, svg);
        }
        if (layer.dots) mark(svg, "circle", x(value), y + 6, 5, { class: `dot ${place}`, "data-value": value });
      });
    });
  }

  function legendOf(panel, get) {
    let colour = 0;
    return panel.layers.filter((layer) => layer.kind !== "rule" && get(layer.name)).map((layer) => {
      const kind = layer.kind === "point" ? "point" : layer.quiet ? "quiet" : `series-${colour++}`;
      const dash = layer.quiet ? "5 4" : DASHES[(colour - 1) % DASHES.length];
      return { text: get(layer.name), kind, dash: layer.kind === "line" ? dash : "", shape: layer.kind };
    });
  }

  function legendHtml(entries) {
    const list = document.createElement("ul");
    list.className = "legend";
    for (const entry of entries) {
      const item = document.createElement("li");
      const key = element("svg", { width: 30, height: 12, "aria-hidden": "true" });
      if (entry.shape === "line") {
        const style = { class: `curve ${entry.kind}`, "stroke-dasharray": entry.dash };
        element("line", { x1: 1, x2: 29, y1: 6, y2: 6, ...style }, key);
      } else if (entry.shape === "point") mark(key, "circle", 15, 6, 5, { class: "point" });
      else element("rect", { x: 6, y: 1, width: 18, height: 10, class: `bar ${entry.kind}` }, key);
      item.append(key, ` ${entry.text}`);
      list.append(item);
    }
    return list;
  }

  // Controls.

  function build(root) {
    const figure = JSON.parse(root.querySelector("script").textContent);
    figure.name = root.id;
    const state = Object.fromEntries(figure.controls.map((control) => [control.name, control.start]));
    const form = document.createElement("form");
    form.addEventListener("submit", (event) => event.preventDefault());
    const panels = document.createElement("div");
    panels.className = "panels";
    panels.setAttribute("role", "img");
    const noted = document.createElement("p");
    noted.className = "noted";
    noted.id = `${root.id}-noted`;
    noted.setAttribute("role", "status");
    panels.setAttribute("aria-labelledby", noted.id);

    const draw = () => {
      const room = Math.max(240, Math.floor(panels.clientWidth));
      const width = figure.panels.length > 1 && room >= 600 ? Math.floor((room - 17) / 2) : Math.min(room, 640);
      panels.replaceChildren(...figure.panels.map((panel) => {
        const holder = document.createElement("div");
        holder.style.width = `${width}px`;  // its legend wraps and makes it no wider
        const title = document.createElement("p");
        title.className = "panel-title";
        title.textContent = panel.title;
        const { svg, legend } = drawPanel(figure, panel, state, width);
        holder.append(title, svg, legendHtml(legend));
        return holder;
      }));
      const words = sentence(figure, state);
      if (noted.textContent !== words) noted.textContent = words;
    };

    for (const control of figure.controls) {
      const label = document.createElement("label");
      const id = `${root.id}-${control.name}`;
      label.htmlFor = id;
      label.textContent = control.label;
      const input = document.createElement(control.is_menu ? "select" : "input");
      input.id = id;
      const shown = document.createElement("output");
      shown.htmlFor = id;
      const changed = () => {
        state[control.name] = Number(input.value);
        const text = control.texts[state[control.name]].replace(/^-/, "−");
        if (!control.is_menu) {
          input.setAttribute("aria-valuetext", text);
          shown.textContent = text;
        }
        draw();
      };
      if (control.is_menu) {
        control.texts.forEach((text, i) => input.add(new Option(text, i, i === control.start, i === control.start)));
      } else {
        Object.assign(input, { type: "range", min: 0, max: control.texts.length - 1, step: 1 });
        input.value = control.start;
        shown.textContent = control.texts[control.start].replace(/^-/, "−");
        input.setAttribute("aria-valuetext", shown.textContent);
      }
      input.addEventListener("input", changed);
      const line = document.createElement("div");
      line.className = "control";
      line.append(label, input, ...(control.is_menu ? [] : [shown]));
      form.append(line);
    }
    root.append(form, panels, noted);
    draw();
    let width = root.clientWidth;
    new ResizeObserver(() => {
      if (root.clientWidth !== width) {
        width = root.clientWidth;
        draw();
      }
    }).observe(root);
  }

  const start = () => document.querySelectorAll(".moving").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
