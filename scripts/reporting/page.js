// Draws the page from its data: the JSON in #data, or what the server at /data says anew while a sweep goes on.
// Names come from files. They reach the page as text alone, and Plotly, which reads tags in text, with `<` spelled out.
"use strict";

const OPTIONS = { responsive: true, displayModeBar: false };
const STATES = ["done", "diverged", "failed", "running", "interrupted", "stopped", "missing"];
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5E3C99", "#8C510A", "#000000"];
const POLL = 4000; // milliseconds between looks at the server
const page = { data: null, text: "", hidden: new Set(), detail: null, states: new Set(), words: "" };

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false && child !== ""));
  return node;
}

const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const count = (number) => Number(number).toLocaleString("en-US");

function short(number) {
  if (number == null) return "";
  return Math.abs(number) >= 1000 ? count(Math.round(number)) : String(Number(number.toPrecision(4)));
}

function duration(seconds) {
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// ---- head: how many runs are in which state, and how far all of them are

function head(data) {
  const total = data.runs.length;
  const cards = [["runs", count(total), ""]];
  for (const state of STATES) if (data.counts[state]) cards.push([state, count(data.counts[state]), state]);
  const { at, of, speed, left } = data.progress;
  if (speed) cards.push(["steps a second", count(Math.round(speed)), ""]);
  if (left) cards.push(["time left", duration(left), ""]);
  const part = of ? Math.min(1, at / of) : 1;
  const bar = el("div", { class: "bar", role: "progressbar", "aria-valuenow": Math.round(100 * part) }, el("i"));
  bar.firstChild.style.width = `${100 * part}%`;
  const words = `${count(at)} of ${count(of)} steps (${Math.floor(100 * part)} %)`;
  return [
    el("h1", {}, data.title),
    el("p", { class: "small" }, `${data.folders.join(", ")} · ${data.made}`),
    el("div", { class: "cards" }, cards.map(([name, value, kind]) =>
      el("div", { class: `card ${kind}` }, el("b", {}, value), el("span", {}, name)))),
    part < 1 && el("div", {}, bar, el("p", { class: "small" }, words)),
    data.notes.length > 0 && el("details", {}, el("summary", {}, data.notes.length === 1 ? "a remark on the files" : `${data.notes.length} remarks on the files`),
      el("ul", {}, data.notes.map((note) => el("li", {}, note)))),
  ];
}

// ---- figures: panels with one legend, whose entries hide lines and whose points open the runs behind them

function legend(figure) {
  return el("div", { class: "legend" }, figure.legend.map((entry) => {
    const swatch = el("i", { class: entry.dashed ? "dashed" : "" });
    swatch.style.borderColor = entry.color;
    return el("button", {
      class: page.hidden.has(entry.key) ? "off" : "", title: entry.title,
      click: () => {
        page.hidden[page.hidden.has(entry.key) ? "delete" : "add"](entry.key);
        for (const button of document.querySelectorAll(".legend button"))
          if (button.lastChild.textContent === entry.key) button.classList.toggle("off", page.hidden.has(entry.key));
        for (const plot of document.querySelectorAll(".plot")) if (plot.panel) draw(plot, plot.panel);
      },
    }, swatch, el("span", {}, entry.key));
  }));
}

function draw(plot, panel) {
  plot.panel = panel;
  const traces = panel.traces.map((trace) => ({ ...trace, visible: !page.hidden.has(trace.name) }));
  Plotly.react(plot, traces, { ...panel.layout, uirevision: "kept" }, OPTIONS);
  if (plot.listens) return;
  plot.listens = true;
  plot.on("plotly_click", ({ points }) => {
    const ids = points[0].customdata ?? points[0].data.meta;
    if (ids) open(ids, plot.closest("section"), points[0].data.name);
  });
}

function grid(panels) {
  return el("div", { class: "grid" }, panels.map((panel) => {
    const plot = el("div", { class: "plot" });
    queueMicrotask(() => draw(plot, panel));
    return el("div", { class: "panel" }, el("h3", {}, panel.title), plot);
  }));
}

function section(agent, figure) {
  return el("section", { "data-figure": `${agent}-${figure.kind}` },
    el("h2", {}, `${figure.title}`), el("p", { class: "small" }, figure.note), legend(figure), grid(figure.panels));
}

// ---- the runs behind a point

function open(ids, section, name) {
  page.detail = { ids, name, figure: section.dataset.figure };
  detail(section);
  section.querySelector(".detail").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

function detail(section) {
  document.querySelectorAll(".detail").forEach((old) => old.remove());
  const runs = page.detail.ids.map((id) => page.data.runs[id]).filter(Boolean);
  const tasks = new Map();
  for (const run of runs) tasks.set(run.env, [...(tasks.get(run.env) ?? []), run]);
  const layout = page.data.agents.flatMap((agent) => agent.figures).find((one) => one.kind !== "profile"
    && one.kind !== "sensitivity")?.panels[0]?.layout;
  const panels = [...tasks].map(([env, own]) => ({
    title: env, traces: own.flatMap(traces),
    layout: { ...layout, yaxis: { ...layout?.yaxis, range: undefined, type: "linear" } },
  }));
  const close = () => { page.detail = null; document.querySelectorAll(".detail").forEach((old) => old.remove()); };
  section.append(el("div", { class: "detail" },
    el("button", { class: "close", click: close, "aria-label": "close" }, "×"),
    el("h3", {}, `${runs.length === 1 ? "The run" : `The ${runs.length} runs`} behind the point: ${page.detail.name}`),
    grid(panels), el("div", { class: "scroll" }, table(runs, true))));
}

function traces(run, place) {
  const color = PALETTE[place % PALETTE.length];
  const lost = run.state === "diverged" ? `<br>diverged at ${count(run.at)}` : "";
  const text = `<b>${plain(run.optimizer)}</b>, lr ${run.rate}, seed ${run.seed}${lost}`;
  const said = { text, hovertemplate: "%{text}<br>%{y:,.4~r} at %{x:,}<extra></extra>", name: "" };
  const found = [{ ...said, type: "scatter", mode: run.x.length > 1 ? "lines" : "markers", x: run.x, y: run.y,
    line: { color, width: 1.6 }, marker: { color } }];
  if (lost && run.x.length) found.push({ ...said, type: "scatter", mode: "markers", x: run.x.slice(-1),
    y: run.y.slice(-1), marker: { symbol: "x-thin", size: 9, line: { width: 2, color } } });
  return found;
}

// ---- tables

function cells(row, tag) {
  return el("tr", {}, row.map((cell) => el(tag, {}, cell)));
}

function comparison(table) {
  return el("section", {}, el("h2", {}, "Comparison"), el("p", { class: "small" }, table.note),
    table.rows.length > 0 && el("div", { class: "scroll" },
      el("table", {}, el("thead", {}, cells(table.titles, "th")), el("tbody", {}, table.rows.map((row) => cells(row, "td"))))));
}

function table(runs, settings) {
  const titles = ["state", "task", "optimizer", "lr", "seed", "steps", "last value", settings && "settings", "run"];
  return el("table", { class: "runs" }, el("thead", {}, cells(titles.filter(Boolean), "th")),
    el("tbody", {}, runs.map((run) => line(run, settings))));
}

function line(run, settings) {
  const set = Object.entries(run.settings ?? {}).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
  const steps = run.planned && run.at < run.planned ? `${count(run.at)} of ${count(run.planned)}` : count(run.at);
  const known = run.id != null;
  return el("tr", { class: known ? "known" : "", click: known && !settings && (() =>
    open([run.id], document.getElementById("runs"), run.name)) },
  el("td", {}, el("span", { class: `state ${run.state}` }, run.state)),
  el("td", {}, run.env ?? ""), el("td", {}, run.optimizer ?? ""), el("td", {}, run.rate ?? ""),
  el("td", {}, run.seed ?? ""), el("td", {}, steps), el("td", {}, short(run.last)),
  settings && el("td", { class: "wide" }, set.join(", ")),
  el("td", { class: "name" }, run.name, run.reason && el("div", { class: "reason" }, run.reason)));
}

function trouble(data) {
  const lost = data.runs.filter((run) => run.state === "diverged");
  const failed = data.runs.filter((run) => ["failed", "stopped"].includes(run.state) || (run.id == null && run.log.length));
  return [
    lost.length > 0 && el("details", { open: lost.length <= 12, "data-kept": "diverged" },
      el("summary", {}, `${lost.length} diverged`), el("ul", { class: "reasons" }, lost.map((run) =>
        el("li", {}, el("b", {}, run.name), ` at ${count(run.at)}: ${run.reason || "no reason is told"}`)))),
    failed.length > 0 && el("details", { open: failed.length <= 12, "data-kept": "failed" },
      el("summary", {}, `${failed.length} failed or stopped`), el("ul", { class: "reasons" },
        failed.map((run) => el("li", {}, el("span", { class: `state ${run.state}` }, run.state), " ", el("b", {}, run.name),
          run.reason && `: ${run.reason}`, run.log?.length > 0 && el("pre", {}, run.log.join("\n")))))),
  ];
}

function runsSection(data) {
  const chosen = () => data.runs.filter((run) => (page.states.size === 0 || page.states.has(run.state))
    && page.words.split(/\s+/).every((word) => JSON.stringify([run.name, run.env, run.optimizer, run.reason]).toLowerCase().includes(word)));
  const list = el("div", { class: "scroll tall" });
  const show = () => list.replaceChildren(table(chosen(), false));
  const filter = el("input", { type: "search", placeholder: "part of a name", "aria-label": "filter", value: page.words,
    input: () => { page.words = filter.value.toLowerCase(); show(); } });
  const chips = STATES.filter((state) => data.counts[state]).map((state) => el("button", {
    class: `state ${state} ${page.states.size && !page.states.has(state) ? "off" : ""}`,
    click: () => { page.states[page.states.has(state) ? "delete" : "add"](state); show();
      for (const chip of document.querySelectorAll("#runs .chips .state"))
        chip.classList.toggle("off", page.states.size > 0 && !page.states.has(chip.textContent)); },
  }, state));
  show();
  return el("section", { id: "runs", "data-figure": "runs" }, el("h2", {}, "Runs"), trouble(data),
    el("div", { class: "chips" }, filter, chips), list,
    Object.keys(data.common).length > 0 && el("details", { "data-kept": "common" }, el("summary", {}, "settings of all runs"),
      el("p", { class: "small" }, Object.entries(data.common).map(([name, value]) => `${name} ${value}`).join(", "))));
}

// ---- the whole page, and what becomes of it while a sweep goes on

function render(data) {
  page.data = data;
  const main = document.querySelector("main");
  const shape = JSON.stringify(data.agents.map((agent) => [agent.agent, agent.comparison?.note,
    agent.figures.map((one) => [one.kind, one.legend, one.panels.map((panel) => panel.title)])]));
  document.querySelector("header").replaceChildren(...head(data).filter(Boolean));
  if (page.shape === shape) {  // the same panels: their lines are drawn anew where they are, nothing jumps
    const panels = data.agents.flatMap((agent) => agent.figures.flatMap((one) => one.panels));
    const plots = [...main.querySelectorAll("section:not(#runs) > .grid .plot")];
    plots.forEach((plot, k) => {
      if (JSON.stringify(plot.panel) !== JSON.stringify(panels[k])) draw(plot, panels[k]);
    });
  } else {
    page.shape = shape;
    document.getElementById("figures").replaceChildren(...data.agents.flatMap((agent) => [
      data.agents.length > 1 && el("h2", { class: "agent" }, agent.agent.toUpperCase()),
      ...agent.figures.map((figure) => section(agent.agent, figure)),
      agent.comparison && comparison(agent.comparison),
      agent.notes.length > 0 && el("ul", { class: "small" }, agent.notes.map((note) => el("li", {}, note))),
    ].filter(Boolean)));
  }
  const before = document.getElementById("runs");
  const opened = new Map([...(before?.querySelectorAll("details") ?? [])].map((one) => [one.dataset.kept, one.open]));
  const scrolled = before?.querySelector(".tall")?.scrollTop ?? 0;
  const focused = document.activeElement?.matches?.("#runs input");
  const runs = runsSection(data);
  runs.querySelectorAll("details").forEach((one) => { one.open = opened.get(one.dataset.kept) ?? one.open; });
  document.getElementById("table").replaceChildren(runs);
  runs.querySelector(".tall").scrollTop = scrolled;
  if (focused) runs.querySelector("input").focus();
  if (page.detail) {
    const section = document.querySelector(`[data-figure="${CSS.escape(page.detail.figure)}"]`);
    if (section) detail(section);
  }
}

async function follow() {
  const told = document.getElementById("told");
  if (!document.hidden) {
    try {
      const answer = await fetch("/data", { cache: "no-store" });
      const text = await answer.text();
      if (!answer.ok) throw new Error(text);
      if (text !== page.text) render(JSON.parse(text));
      page.text = text;
      told.textContent = "";
    } catch (error) {
      told.textContent = `no answer from the server (${error.message}); this is what was there at ${page.data.made}`;
    }
  }
  setTimeout(follow, POLL);
}

render(JSON.parse(document.getElementById("data").textContent));
if (document.body.dataset.live) setTimeout(follow, POLL);
