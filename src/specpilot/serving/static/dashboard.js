// The dashboard: reads /metrics once a second and shows the difference over the last minute.
"use strict";

const EVERY_MS = 1000;
const WINDOW_S = 60;
const SVG = "http://www.w3.org/2000/svg";
const field = (id) => document.getElementById(id);
const samples = []; // {at, values}
const latencies = [];
let paused = false;

field("pause").addEventListener("click", () => {
  paused = !paused;
  field("pause").setAttribute("aria-pressed", String(paused));
  field("state").textContent = paused ? "Paused." : "";
});

function parse(body) {
  const values = new Map();
  for (const line of body.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const cut = line.lastIndexOf(" ");
    values.set(line.slice(0, cut), Number(line.slice(cut + 1)));
  }
  return values;
}

const label = (name, key) => (name.match(new RegExp(`${key}="([^"]*)"`)) || [])[1];

function since(now, then) {
  return (name) => (now.get(name) || 0) - (then.get(name) || 0);
}

function family(now, change, name, key) {
  const found = [];
  for (const full of now.keys()) {
    if (full.startsWith(`${name}{`)) found.push([label(full, key), change(full)]);
  }
  return found;
}

// Linear within a bucket, as Prometheus' histogram_quantile does; in seconds, null without samples.
function quantile(now, change, name, share) {
  const buckets = family(now, change, `${name}_bucket`, "le").map(([le, count]) => [le === "+Inf" ? Infinity : Number(le), count]);
  const total = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!total) return null;
  let low = 0, below = 0;
  for (const [le, count] of buckets) {
    if (count >= share * total) return le === Infinity ? low : low + ((le - low) * (share * total - below)) / Math.max(count - below, 1e-9);
    low = le;
    below = count;
  }
  return low;
}

function show(id, value, good) {
  const place = field(id);
  place.textContent = value;
  place.className = good === undefined ? "" : good ? "good" : "bad";
}

function element(parent, name, attributes, content) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== undefined) made.textContent = content;
  parent.appendChild(made);
}

function columns(id, entries, what) {
  const svg = field(id);
  svg.replaceChildren();
  const width = 300 / Math.max(entries.length, 1);
  entries.forEach(([name, value], index) => {
    const height = 96 * Math.max(0, Math.min(1, value));
    element(svg, "rect", { class: "track", x: index * width + 2, y: 4, width: Math.max(width - 4, 1), height: 96, opacity: 0.35 });
    element(svg, "rect", { class: "bar", x: index * width + 2, y: 100 - height, width: Math.max(width - 4, 1), height });
    element(svg, "text", { x: index * width + width / 2, y: 114, "text-anchor": "middle" }, name);
  });
  svg.setAttribute("aria-label", entries.length ? `${what}: ${entries.map(([name, value]) => `${name}: ${percent(value)}`).join(", ")}` : `${what}: nothing yet`);
}

function bars(id, entries, what) {
  const svg = field(id);
  svg.replaceChildren();
  const total = entries.reduce((sum, [, value]) => sum + value, 0);
  const shown = entries.filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]).slice(0, 6);
  shown.forEach(([name, value], index) => {
    const share = value / total;
    element(svg, "rect", { class: "bar", x: 90, y: index * 20 + 3, width: Math.max(170 * share, 1), height: 13 });
    element(svg, "text", { x: 84, y: index * 20 + 14, "text-anchor": "end" }, name);
    element(svg, "text", { x: 94 + 170 * share, y: index * 20 + 14 }, percent(share));
  });
  svg.setAttribute("aria-label", total ? `${what}: ${shown.map(([name, value]) => `${name}: ${percent(value / total)}`).join(", ")}` : `${what}: nothing yet`);
}

function curve(id, values, limit, what) {
  const svg = field(id);
  svg.replaceChildren();
  const known = values.filter((value) => value !== null);
  const top = Math.max(limit * 1.25, ...known);
  const y = (value) => 116 - (112 * value) / top;
  element(svg, "line", { class: "limit", x1: 0, x2: 300, y1: y(limit), y2: y(limit) });
  let path = "", drawing = false;
  values.forEach((value, index) => {
    if (value === null) { drawing = false; return; }
    path += `${drawing ? "L" : "M"}${((index * 300) / (WINDOW_S - 1)).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!drawing) path += "h0.1";
    drawing = true;
  });
  element(svg, "path", { class: "curve", d: path });
  svg.setAttribute("aria-label", known.length ? `${what}: now ${known[known.length - 1].toFixed(0)} ms, limit ${limit.toFixed(0)} ms` : `${what}: nothing yet`);
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const number = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

function draw() {
  const last = samples[samples.length - 1], first = samples[0];
  const now = last.values, change = since(now, first.values), span = (last.at - first.at) / 1000;
  field("window").textContent = span.toFixed(0);
  const slo = now.get("specpilot_slo_seconds") * 1000, budget = now.get("specpilot_pass_budget");
  const p95 = quantile(now, change, "specpilot_e2e_seconds", 0.95);
  show("p95", p95 === null ? "–" : `${(1000 * p95).toFixed(0)} ms`, p95 === null ? undefined : 1000 * p95 <= slo);
  field("p95-note").textContent = `of requests that the engine served; promised ${slo.toFixed(0)} ms`;
  const passes = now.get("specpilot_target_passes_total") / now.get("specpilot_charged_requests");
  show("passes", number(passes, 3), Number.isFinite(passes) ? passes <= budget : undefined);
  field("passes-note").textContent = `since the start; promised ${budget}`;
  const met = change('specpilot_slo_requests_total{met="true"}'), hits = change('specpilot_continuation_requests_total{outcome="hit"}');
  const turned = family(now, change, "specpilot_turned_away_requests_total", "reason").reduce((sum, [, count]) => sum + count, 0);
  const refused = change('specpilot_requests_total{outcome="refused"}') + turned;
  const judged = met + change('specpilot_slo_requests_total{met="false"}') + refused;
  show("attained", judged ? percent(met / judged) : "–");
  field("attained-note").textContent = `${refused} refused; cancelled and cached ones not counted`;
  const arrivals = change("specpilot_arrivals_total") + turned;
  show("rate", span ? number((arrivals + hits) / span, 1) : "–");
  field("rate-note").textContent = `${hits} from the continuation cache`;
  const cycles = change("specpilot_draft_length_count");
  show("tau", cycles ? number(change("specpilot_draft_length_sum") / cycles, 1) : "–");
  field("tau-note").textContent = cycles ? `${percent(change("specpilot_fallback_cycles_total") / cycles)} of cycles without a draft` : "";
  show("yield", cycles ? number(change("specpilot_emitted_tokens_total") / cycles, 2) : "–");
  const drafted = change("specpilot_draft_tokens_total");
  field("yield-note").textContent = drafted ? `${percent(change("specpilot_accepted_tokens_total") / drafted)} of drafted tokens accepted` : "";
  show("pool", number(now.get("specpilot_pass_pool"), 0));
  field("pool-note").textContent = "left by requests that needed fewer";
  show("queue", number(now.get("specpilot_queue_depth"), 0));
  const mode = family(now, (name) => now.get(name), "specpilot_mode", "mode").find(([, value]) => value === 1);
  field("queue-note").textContent = `mode ${mode ? mode[0] : "?"}`;
  const drafts = new Map(family(now, change, "specpilot_draft_tokens_at_position_total", "position"));
  const accepted = family(now, change, "specpilot_accepted_tokens_at_position_total", "position");
  columns("acceptance", accepted.filter(([position]) => drafts.get(position) > 0).slice(0, 16).map(([position, count]) => [position, count / drafts.get(position)]), "Share of drafted tokens accepted, by position in the block");
  bars("binding", family(now, change, "specpilot_cycles_total", "binding"), "What bound the decisions");
  bars("stops", family(now, change, "specpilot_stops_total", "cause"), "Why requests ended");
  curve("latency", latencies, slo, "Latency at p95");
}

async function tick() {
  if (!paused) {
    try {
      const response = await fetch("/metrics");
      if (!response.ok) throw new Error(String(response.status));
      const values = parse(await response.text());
      if (samples.length) {
        const change = since(values, samples[samples.length - 1].values);
        const p95 = quantile(values, change, "specpilot_e2e_seconds", 0.95);
        latencies.push(p95 === null ? null : 1000 * p95);
        if (latencies.length > WINDOW_S) latencies.shift();
      }
      samples.push({ at: performance.now(), values });
      while (samples.length > WINDOW_S + 1) samples.shift();
      draw();
      field("state").textContent = "";
    } catch (error) {
      field("state").textContent = "The server does not answer.";
    }
  }
  setTimeout(tick, EVERY_MS);
}

tick();
