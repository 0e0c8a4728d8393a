"use strict";
// The dashboard: asks for its data once a second and writes what has changed into the page. Elements of a list are kept and
// changed, so that the focus of the keyboard stays. Text is only ever set as text.

const POLL_MS = 1000;
const TIMEOUT_MS = 5000;
const MAX_AXIS = 48; // rows and columns of the map
const ROWS = 25; // requests in the list
const MANY = 12; // workers of a role that are seen at a glance
const PARTS = {
  read: "the client sends its request",
  queue: "no pair has capacity",
  retry: "attempts that failed",
  send: "both legs are sent",
  prefill: "prefill computes the prompt and sends its KV cache",
  decode: "decode's first event after that",
  relay: "the first byte goes to the client",
};
const STATES = {
  serving: "", returning: "warn", silent: "warn", paused: "warn", draining: "warn", pending: "warn", "on trial": "bad",
};

const $ = (id) => document.getElementById(id);
const view = { prefill: null, decode: null, chosen: null };
let data = null;
let requests = null;
let failed = 0;
let lastData = 0;
let polling = null;

// ---------------------------------------------------------------- elements

function make(name, properties, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/** Makes the children of `parent` those of `items`: each is made once for its key, and updated every time. */
function keyed(parent, items, keyOf, create, update) {
  const old = parent.keyed || new Map();
  const now = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    const element = old.get(key) || create(item);
    old.delete(key);
    now.set(key, element);
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
    update(element, item);
  }
  for (const element of old.values()) element.remove();
  parent.keyed = now;
}

// ---------------------------------------------------------------- numbers

const group = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function count(value) {
  return value === null || value === undefined ? "–" : group.format(value).replaceAll(",", "\u202f");
}

function rate(value) {
  return value >= 100 ? count(value) : value >= 10 ? value.toFixed(1) : value.toFixed(value === 0 ? 0 : 2);
}

/** A time in three digits, and its unit. */
function time(ms) {
  if (ms === null || ms === undefined) return ["–", ""];
  if (ms < 0.05) return ["0", "ms"];
  if (ms < 10) return [ms.toFixed(1), "ms"];
  if (ms < 1000) return [ms.toFixed(0), "ms"];
  if (ms < 10000) return [(ms / 1000).toFixed(2), "s"];
  return [(ms / 1000).toFixed(1), "s"];
}

const millis = (ms) => time(ms).join(" ").trim();

function duration(seconds) {
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function percent(part) {
  return part === null || part === undefined ? "–" : `${Math.round(part * 100)} %`;
}

// ---------------------------------------------------------------- workers and the filter

const short = (url) => url.replace(/^https?:\/\//, "");
const ofRole = (role) => data.workers.filter((worker) => worker.role === role);

/** "P1" or "D2": the place among the workers of the role. */
function nick(worker) {
  return (worker.role === "prefill" ? "P" : "D") + (ofRole(worker.role).indexOf(worker) + 1);
}

function nickOf(role, url) {
  const worker = data.workers.find((known) => known.role === role && known.url === url);
  return worker ? nick(worker) : short(url);
}

const matches = (role, url) => view[role] === null || view[role] === url;

function choose(prefill, decode) {
  const same = view.prefill === prefill && view.decode === decode;
  view.prefill = same ? null : prefill;
  view.decode = same ? null : decode;
  const hash = query();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  if (data) draw();
  poll();
}

function query() {
  const filter = ["prefill", "decode"].filter((role) => view[role] !== null);
  return filter.map((role) => `${role}=${encodeURIComponent(view[role])}`).join("&");
}

function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  view.prefill = hash.get("prefill");
  view.decode = hash.get("decode");
}

/** 0 where the worker gets no request or fails them, 1 where something is to be known of it, 2 where it is well. */
const wellness = (worker) => ["bad", "warn", ""].indexOf(STATES[worker.state] ?? "bad");

// ---------------------------------------------------------------- drawing

function draw() {
  text($("meta"), `${data.version} · up ${duration(data.uptime_seconds)} · ${data.total.prefill} prefill, ${data.total.decode} decode`);
  drawUnwell();
  drawAdvice();
  drawFilter();
  drawNumbers();
  drawParts();
  drawMap();
  drawWorkers();
  drawRates();
  drawRequests();
}

/** The workers whose state is bad, by name: of hundreds they would not be seen. */
function drawUnwell() {
  const names = data.workers.filter((worker) => wellness(worker) === 0).map((worker) => `${nick(worker)} ${worker.state}`);
  const more = names.length > 4 ? `, and ${count(names.length - 3)} more` : "";
  $("unwell").hidden = names.length === 0;
  text($("unwell"), names.slice(0, more ? 3 : 4).join(", ") + more);
}

function drawAdvice() {
  const { verdict, text: words, prefill_busy, decode_busy } = data.advice;
  $("advice").dataset.verdict = verdict;
  text($("advice-text"), words);
  const known = verdict !== "not_enough";
  for (const [role, busy] of [["prefill", known ? prefill_busy : null], ["decode", known ? decode_busy : null]]) {
    text($(`busy-${role}`), percent(busy));
    $(`busy-${role}-bar`).style.width = `${Math.min(busy || 0, 1) * 100}%`;
  }
}

function drawFilter() {
  const chosen = ["prefill", "decode"].filter((role) => view[role] !== null);
  $("filter").hidden = chosen.length === 0;
  const name = (role) => `${nickOf(role, view[role])} ${short(view[role])}`;
  text($("filter-text"), chosen.map(name).join(" → "));
}

function drawNumbers() {
  const { minute, per_second: now } = data;
  text($("n-requests"), rate(now.requests));
  text($("n-events"), rate(now.events));
  text($("n-live"), count(data.live));
  text($("n-waiting"), count(data.waiting));
  for (const part of ["p50", "p90", "p99"]) {
    const [value, unit] = time(minute.ttft_ms[part]);
    const place = $(`n-${part}`);
    if (place.dataset.shown === value + unit) continue;
    place.dataset.shown = value + unit;
    place.replaceChildren(value, make("small", {}, unit));
  }
  text($("n-failures"), count(minute.failures));
  $("k-failures").toggleAttribute("data-any", minute.failures > 0);
}

/** The smallest of 1, 2, 5, 10, 20 … that is not below. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function drawParts() {
  const { names, points, step_seconds: step } = data.parts;
  const sums = names.map((_, part) => points.reduce((sum, point) => sum + point[part + 2], 0));
  const streams = points.reduce((sum, point) => sum + point[1], 0);
  const all = sums.reduce((sum, one) => sum + one, 0);
  const rows = names.map((name, part) => ({ name, mean: streams ? sums[part] / streams : null, share: all ? sums[part] / all : null }));
  keyed($("parts").tBodies[0], rows, (row) => row.name,
    ({ name }) => make("tr", {},
      make("th", { scope: "row" }, make("span", { className: `key p-${name}`, ariaHidden: "true" }), name),
      make("td"), make("td"), make("td", { className: "left" }, PARTS[name] || "")),
    (row, { mean, share }) => {
      text(row.cells[1], millis(mean));
      text(row.cells[2], percent(share));
    });
  drawChart(names, points, step, all && streams ? all / streams : null);
}

function drawChart(names, points, step, mean) {
  const box = $("chart");
  const width = Math.max(box.clientWidth, 240);
  const height = box.clientHeight || 190;
  const [left, right, top, bottom] = [46, 4, 8, 20];
  const slots = Math.round(900 / step);
  const bars = points.filter((point) => point[1] > 0);
  const heights = bars.map((point) => point.slice(2).reduce((sum, part) => sum + part, 0) / point[1]);
  const highest = nice(Math.max(...heights, 1));
  const x = (slot) => left + ((width - left - right) * slot) / slots;
  const y = (ms) => top + (height - top - bottom) * (1 - ms / highest);
  const label = mean === null ? "No stream in the last 15 minutes" : `Mean time to the first token in the last 15 minutes, by part: ${millis(mean)} in all. The table below has the parts.`;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const part of [0, 0.5, 1]) {
    chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(highest * part), y2: y(highest * part) }));
    chart.append(svg("text", { x: left - 6, y: y(highest * part) + 4, "text-anchor": "end" }, part ? millis(highest * part) : "0"));
  }
  for (const [minutes, anchor] of [[15, "start"], [10, "middle"], [5, "middle"], [0, "end"]]) {
    const words = minutes ? `−${minutes} min` : "now";
    chart.append(svg("text", { x: x(slots * (1 - minutes / 15)), y: height - 5, "text-anchor": anchor }, words));
  }
  const gap = (x(1) - x(0)) > 4 ? 1 : 0;
  for (const point of bars) {
    const slot = slots - 1 - point[0];
    let base = 0;
    names.forEach((name, part) => {
      const ms = point[part + 2] / point[1];
      if (ms <= 0) return;
      const high = y(base) - y(base + ms);
      if (high > 0.05) {
        chart.append(svg("rect", { class: `p-${name}`, x: x(slot).toFixed(1), width: Math.max(x(1) - x(0) - gap, 1).toFixed(1), y: y(base + ms).toFixed(1), height: high.toFixed(1) }));
      }
      base += ms;
    });
  }
  if (mean === null) chart.append(svg("text", { x: (left + width) / 2, y: height / 2, "text-anchor": "middle" }, "no stream yet"));
  box.replaceChildren(chart);
}

function picked(name) {
  return document.querySelector(`input[name=${name}]:checked`).value;
}

function drawMap() {
  const metric = Number(picked("metric"));
  const span = picked("span");
  const known = new Map(data.pairs.map((pair) => [`${pair.prefill} ${pair.decode}`, pair[span]]));
  const places = new Map(data.workers.map((worker, place) => [worker, place]));
  const traffic = new Map();
  for (const pair of data.pairs) {
    for (const place of [pair.prefill, pair.decode]) traffic.set(place, (traffic.get(place) || 0) + pair.quarter[0]);
  }
  const axis = (role) => {
    const all = ofRole(role);
    if (all.length <= MAX_AXIS) return all;
    const busiest = [...all].sort((a, b) => (traffic.get(places.get(b)) || 0) - (traffic.get(places.get(a)) || 0)).slice(0, MAX_AXIS);
    return all.filter((worker) => busiest.includes(worker));
  };
  const [rows, columns] = [axis("prefill"), axis("decode")];
  const values = data.pairs.map((pair) => pair[span][metric] || 0);
  const highest = Math.max(...values, 1e-9);
  const lowest = metric === 2 ? Math.min(...values.filter((value) => value > 0), highest) : 0;
  const heat = (value) => (value ? 0.06 + 0.44 * (highest > lowest ? (value - lowest) / (highest - lowest) : metric === 2 ? 0 : 1) : 0);
  const map = $("map");
  map.dataset.metric = metric;

  const head = map.tHead.rows[0] || map.tHead.insertRow();
  if (!head.firstChild) head.append(make("td", {}, "prefill \\ decode"));
  const button = (worker, press) => {
    const element = make("button", { type: "button" });
    element.addEventListener("click", press);
    return element;
  };
  const name = (element, worker, pressed) => {
    text(element, nick(worker));
    element.title = worker.url;
    element.ariaLabel = `${nick(worker)} ${worker.url}, ${worker.state}: filter`;
    element.ariaPressed = String(pressed);
    element.classList.toggle("down", worker.breaker_open);
  };
  if (!map.columns) map.columns = make("tr");
  keyed(head, [null, ...columns], (worker) => (worker ? worker.url : ""),
    (worker) => (worker ? make("th", { scope: "col" }, button(worker, () => choose(null, worker.url))) : head.firstChild),
    (cell, worker) => worker && name(cell.firstChild, worker, view.decode === worker.url));
  keyed(map.tBodies[0], rows, (worker) => worker.url,
    (worker) => make("tr", {}, make("th", { scope: "row" }, button(worker, () => choose(worker.url, null)))),
    (row, prefill) => {
      name(row.firstChild.firstChild, prefill, view.prefill === prefill.url);
      const header = row.firstChild;
      keyed(row, [null, ...columns], (decode) => (decode ? decode.url : ""),
        (decode) => (decode ? make("td", {}, make("button", { type: "button" }, make("span"))) : header),
        (cell, decode) => {
          if (!decode) return;
          const pair = known.get(`${places.get(prefill)} ${places.get(decode)}`);
          const value = pair ? pair[metric] : null;
          const cellButton = cell.firstChild;
          cellButton.onclick = () => choose(prefill.url, decode.url);
          text(cellButton.firstChild, metric === 2 ? millis(value) : count(value));
          cellButton.classList.toggle("none", !value);
          cellButton.style.setProperty("--heat", heat(value).toFixed(3));
          const [n, failures, ttft] = pair || [0, 0, null];
          cellButton.title = `${nick(prefill)} → ${nick(decode)}: ${count(n)} requests, ${count(failures)} failures, TTFT p90 ${millis(ttft)}`;
          cellButton.ariaLabel = `${cellButton.title}: filter`;
          cellButton.ariaPressed = String(view.prefill === prefill.url && view.decode === decode.url);
          cell.classList.toggle("out", !(matches("prefill", prefill.url) && matches("decode", decode.url)));
        });
    });
  const left = rows.length < data.total.prefill || columns.length < data.total.decode;
  text($("map-note"), left ? `The busiest ${rows.length} × ${columns.length} of ${data.total.prefill} × ${data.total.decode} are shown.` : "Click a cell, a row or a column to look at its requests only.");
}

function drawWorkers() {
  for (const role of ["prefill", "decode"]) {
    // Those that are probed before they serve come last.
    const pending = (data.pending ?? []).filter((worker) => worker.role === role);
    const shown = ofRole(role).concat(pending).filter((worker) => matches(role, worker.url));
    // Those that are not well come first where the others would hide them.
    if (shown.length > MANY) shown.sort((a, b) => wellness(a) - wellness(b));
    keyed($(`workers-${role}`), shown, (worker) => worker.url,
      (worker) => make("tr", { "data-url": worker.url, "data-role": role },
        make("th", { scope: "row" }, make("span", { className: "name" }), make("span", { className: "url" }, short(worker.url))),
        make("td", { className: "left" }, make("span", { className: "state" })),
        make("td"), make("td"), make("td"), make("td"), make("td", { className: "left muted" })),
      (row, worker) => {
        const state = STATES[worker.state] ?? "bad";
        text(row.cells[0].firstChild, worker.in_flight === undefined ? "new" : nick(worker));
        row.title = worker.problem ?? "";
        const place = row.cells[1].firstChild;
        text(place, worker.state);
        place.className = `state ${state}`;
        row.classList.toggle("bad", state === "bad");
        row.dataset.state = worker.state;
        [worker.in_flight ?? 0, worker.requests ?? 0, worker.failures ?? 0].forEach((value, cell) => {
          text(row.cells[cell + 2], count(value));
          row.cells[cell + 2].classList.toggle("zero", value === 0);
        });
        row.cells[4].classList.toggle("bad", worker.failures > 0);
        text(row.cells[5], millis(worker.ttft_p90_ms ?? null));
        text(row.cells[6], load(worker.load));
      });
  }
  const missing = data.total.prefill + data.total.decode - data.workers.length;
  text($("workers-note"), missing > 0 ? `last minute · ${count(missing)} that serve are not shown` : "last minute");
}

function load(load) {
  if (!load) return "not polled";
  const parts = Object.entries(load).filter(([name, value]) => value > 0 && name !== "kv_usage");
  const words = parts.map(([name, value]) => `${name} ${count(value)}`);
  if (load.kv_usage !== undefined && load.kv_usage !== null) words.push(`kv ${percent(load.kv_usage)}`);
  return words.join(" · ") || "idle";
}

function drawRates() {
  const { minute, quarter, per_second: now } = data;
  for (const name of ["requests", "failures", "events"]) text($(`r-${name}-s`), rate(now[name]));
  for (const name of ["requests", "failures", "streams", "events"]) {
    text($(`r-${name}-1`), count(minute[name]));
    text($(`r-${name}-15`), count(quarter[name]));
  }
  text($("r-gap-1"), millis(minute.gap_ms));
  text($("r-gap-15"), millis(quarter.gap_ms));
  const row = (first) => make("tr", {}, make("th", { scope: "row" }, first), ...first === undefined ? [] : [make("td")]);
  keyed($("routes").tBodies[0], Object.entries(quarter.routes), ([name]) => name,
    ([name]) => make("tr", {}, make("th", { scope: "row" }, name), make("td"), make("td")),
    (line, [name, value]) => {
      text(line.cells[1], count(minute.routes[name] || 0));
      text(line.cells[2], count(value));
    });
  keyed($("errors").tBodies[0], [...data.errors].sort((a, b) => b[1] - a[1]), ([code]) => code,
    ([code]) => row(code),
    (line, [, value]) => text(line.cells[1], count(value)));
  $("errors-none").hidden = data.errors.length > 0;
}

// ---------------------------------------------------------------- requests

function drawRequests() {
  const shown = requests && requests.list === picked("list") ? requests.rows : [];
  const chosen = shown.find((request) => request.key === view.chosen) || shown[0];
  keyed($("request-rows"), shown, (request) => request.key,
    (request) => {
      const button = make("button", { type: "button", title: request.id }, request.id);
      button.addEventListener("click", () => { view.chosen = request.key; drawRequests(); });
      return make("tr", {}, make("td", { className: "left" }, button), make("td", { className: "left" }, request.route || "–"),
        make("td", { className: "left" }), make("td"), make("td"), make("td"), make("td", { className: "left" }));
    },
    (row, request) => {
      row.classList.toggle("chosen", request === chosen);
      row.cells[0].firstChild.ariaPressed = String(request === chosen);
      const pair = request.prefill ? `${nickOf("prefill", request.prefill)} → ${nickOf("decode", request.decode)}` : "–";
      text(row.cells[2], pair);
      text(row.cells[3], millis(request.ttft));
      text(row.cells[4], millis(request.total));
      text(row.cells[5], count(request.events));
      text(row.cells[6], request.ended);
      row.cells[6].classList.toggle("bad", request.bad);
    });
  $("requests-none").hidden = shown.length > 0;
  text($("requests-none"), requests && requests.off ? "Requests are not remembered: debug_requests_capacity is 0." : "No such request.");
  drawWaterfall(chosen);
}

function drawWaterfall(request) {
  const place = $("waterfall");
  if (!request) return place.replaceChildren();
  const steps = [];
  let at = 0;
  for (const [name, ms] of request.parts) {
    if (ms >= 0.05) steps.push({ name, at, ms });
    at += ms;
  }
  const rest = request.total - at;
  if (rest > 0.05) steps.push({ name: request.rest, at, ms: rest });
  const whole = Math.max(request.total, at, 1e-6);
  const lanes = steps.flatMap((step) => {
    const bar = make("i", { className: `p-${step.name}` });
    bar.style.left = `${((step.at / whole) * 100).toFixed(2)}%`;
    bar.style.width = `${((step.ms / whole) * 100).toFixed(2)}%`;
    return [make("b", {}, step.name), make("span", { className: "lane", ariaHidden: "true" }, bar), make("output", {}, millis(step.ms))];
  });
  const head = make("p", { className: "fall-head" }, make("strong", {}, request.id));
  if (request.attempts > 1) head.append(make("span", { className: "muted" }, `${request.attempts} attempts`));
  const ttft = request.ttft === null ? "" : `TTFT ${millis(request.ttft)}, `;
  head.append(make("span", { className: "muted" }, `${ttft}in all ${millis(request.total)}`));
  for (const { worker, cause } of request.failed) head.append(make("span", { className: "fault" }, `${cause} at ${short(worker)}`));
  if (request.error) head.append(make("span", { className: "fault" }, request.error));
  place.replaceChildren(head, make("div", { className: "fall" }, ...lanes));
}

// ---------------------------------------------------------------- polling

async function get(path) {
  const response = await fetch(path, { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!response.ok) throw Object.assign(new Error(String(response.status)), { status: response.status });
  return response.json();
}

async function update() {
  const asked = query();
  try {
    data = await get(asked ? `dashboard/data?${asked}` : "dashboard/data");
  } catch (error) {
    // A worker of the filter is gone: everything is shown.
    if (error.status === 400 && asked) {
      choose(null, null);
      return;
    }
    throw error;
  }
  if (asked !== query()) return;
  requests = await readRequests();
  draw();
}

/** The list of requests that is shown: a row for each, with the times in milliseconds. */
async function readRequests() {
  const list = picked("list");
  const filter = query();
  try {
    const answer = await get(`debug/requests?${list}=${ROWS}${filter ? `&${filter}` : ""}`);
    const slowest = answer.slowest && (answer.slowest.by_ttft.length ? answer.slowest.by_ttft : answer.slowest.by_e2e);
    return { list, rows: (answer[list] && list !== "slowest" ? answer[list] : slowest || []).map(row) };
  } catch (error) {
    // Not remembered: `debug_requests_capacity` is 0. The filter: its worker is new, and no request knows it.
    if (error.status === 404 || error.status === 400) return { list, rows: [], off: error.status === 404 };
    throw error;
  }
}

function row(request) {
  const is_live = request.state === "live";
  return {
    key: `${request.number} ${request.id} ${request.sample ?? ""}`,
    id: request.id,
    route: request.route,
    prefill: request.prefill,
    decode: request.decode,
    attempts: request.attempts,
    failed: request.failed || [],
    error: request.error,
    events: request.events,
    ttft: request.ttft_ms,
    total: is_live ? request.started_ago_ms : request.e2e_ms,
    ended: is_live ? `live: ${request.step}` : request.ended,
    bad: !is_live && request.ended !== "ok",
    rest: request.stream ? "stream" : "response",
    parts: Object.entries(request.parts_ms || {}),
  };
}

function note(state, words) {
  if ($("link").dataset.state !== state) $("link").dataset.state = state;
  document.body.classList.toggle("lost", state === "lost");
  text($("link-text"), words);
}

async function poll() {
  clearTimeout(polling);
  try {
    await update();
    failed = 0;
    lastData = Date.now();
    if (data.held) note("held", `Live; new requests wait: ${data.held}`);
    else note("live", "Live");
  } catch (error) {
    failed += 1;
    const status = error.status === 401 ? "Login needed: reload the page" : error.status ? `The balancer responds with ${error.status}` : "Connection lost";
    if (failed > 1 || !data) note("lost", `${status}. Trying again.`);
  }
  clearTimeout(polling);
  polling = setTimeout(poll, document.hidden ? 10 * POLL_MS : POLL_MS);
}

readHash();
for (const name of ["metric", "span"]) $(name).addEventListener("change", () => data && draw());
$("list").addEventListener("change", poll);
$("filter-clear").addEventListener("click", () => choose(null, null));
addEventListener("keydown", (event) => { if (event.key === "Escape" && query()) choose(null, null); });
addEventListener("hashchange", () => { readHash(); poll(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
new ResizeObserver(() => { if (data) drawParts(); }).observe($("chart"));
poll();
