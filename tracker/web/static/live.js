// The live page: asks for a report and a funnel every second and shows them as text.
//
// Parameters of the address: site, window, by, funnel, bots; a token for reading from another
// machine stands behind the # (`#token=…`), so that it reaches no server log. Data is only ever
// put into text nodes. When the server is away, the last figures stay and the page says so.
"use strict";

const POLL_MS = 1000;
const PATIENCE_MS = 5000;
const ROWS_MAX = 20;
const FUNNELS_EVERY = 30; // polls: a new funnel is a rare thing
const WINDOWS = ["5m", "1h", "24h", "7d", "30d"];
const NOTHING = "—";

const TILES = [
  ["views", "Views"],
  ["visitors", "Visitors"],
  ["sessions", "Sessions"],
  ["impressions", "Impressions"],
  ["clicks", "Clicks"],
  ["ctr", "CTR"],
  ["conversions", "Conversions"],
  ["cr", "CR"],
  ["visitor_cr", "Visitor CR"],
  ["orders", "Orders"],
  ["revenue", "Revenue"],
  ["aov", "Average order"],
];
const COLUMNS = ["views", "visitors", "clicks", "conversions", "orders", "revenue", "cr"];
const NAMES = Object.fromEntries(TILES);

const asked = new URLSearchParams(location.search);
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const choice = {
  site: asked.get("site") || "",
  window: asked.get("window") || "1h",
  by: asked.get("by") || "utm_campaign",
  funnel: asked.get("funnel") || "",
  bots: asked.get("bots") || "",
};
let funnels = [];
let polls = 0;

const at = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Figures as people read them.

const whole = new Intl.NumberFormat();
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 2 });

function money(amount, currency) {
  if (amount === null || amount === undefined) return NOTHING;
  try {
    return new Intl.NumberFormat(undefined, { style: "currency", currency }).format(amount);
  } catch {
    return `${amount} ${currency}`;
  }
}

function severalCurrencies(figure) {
  return Object.entries(figure.by_currency).map(([code, amount]) => money(amount, code)).join(" + ");
}

function show(figure) {
  if (figure === null || figure === undefined) return NOTHING;
  if (typeof figure === "number") return whole.format(figure);
  if (figure.by_currency) return "amount" in figure ? severalCurrencies(figure) : NOTHING;
  if ("amount" in figure) return money(figure.amount, figure.currency);
  if (!("denominator" in figure)) return `≈ ${whole.format(figure.value)}`;
  if (figure.value === null) return NOTHING;
  return "currency" in figure ? money(figure.value, figure.currency) : percent.format(figure.value);
}

function under(figure) {
  if (!figure || typeof figure !== "object" || !("denominator" in figure)) return "";
  const above = "currency" in figure ? figure.numerator : whole.format(figure.numerator);
  return `${above ?? NOTHING} of ${whole.format(figure.denominator)}`;
}

// Asking.

class Refused extends Error {}

async function ask(path, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== "") query.set(name, value);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) };
  const response = await fetch(`${path}?${query}`, options);
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const detail = body?.detail || `The server answered ${response.status}.`;
  throw response.status < 500 ? new Refused(detail) : new Error(detail);
}

function askReport(by) {
  return ask("/v1/report", {
    site: choice.site,
    window: choice.window,
    bots: choice.bots,
    by,
    limit: by ? ROWS_MAX : "",
    metrics: TILES.map(([name]) => name).join(","),
  });
}

async function freshReport() {
  try {
    return await askReport(choice.by);
  } catch (error) {
    // A site may not count by campaign; what the address asks for by name is not dropped.
    if (!(error instanceof Refused) || !choice.by || asked.get("by")) throw error;
    const report = await askReport("");
    choice.by = "";
    return report;
  }
}

async function freshFunnel() {
  if (polls % FUNNELS_EVERY === 0) {
    funnels = (await ask("/v1/funnels", { site: choice.site })).funnels.map(({ name }) => name);
  }
  const name = choice.funnel || funnels[0];
  if (!name) return null;
  const path = `/v1/funnels/${encodeURIComponent(name)}`;
  return ask(path, { site: choice.site, window: choice.window, bots: choice.bots });
}

// Showing.

function link(text, change) {
  const parameters = new URLSearchParams(asked);
  for (const [name, value] of Object.entries(change)) parameters.set(name, value);
  const anchor = make("a", "", text);
  anchor.href = `?${parameters}${location.hash}`;
  return anchor;
}

function showLinks(element, names, parameter, current) {
  const links = names.map((name) => {
    const anchor = link(name, { [parameter]: name });
    if (name === current) anchor.setAttribute("aria-current", "true");
    return anchor;
  });
  element.replaceChildren(...links);
}

function showTiles(totals) {
  const tiles = TILES.map(([name, label]) => {
    const tile = make("div", "tile");
    tile.append(
      make("div", "name", label),
      make("div", "value", show(totals[name])),
      make("div", "under", under(totals[name])),
    );
    return tile;
  });
  at("tiles").replaceChildren(...tiles);
}

function showRows(report) {
  at("rows-section").hidden = !choice.by;
  if (!choice.by) return;
  at("rows-title").textContent = choice.by === "utm_campaign" ? "By campaign" : `By ${choice.by}`;
  const head = [choice.by, ...COLUMNS.map((name) => NAMES[name])].map((text) => {
    const cell = make("th", "", text);
    cell.scope = "col";
    return cell;
  });
  at("rows-head").replaceChildren(...head);
  const rows = report.rows.map((row) => {
    const line = make("tr");
    const mark = row.at_least ? "≥ " : "";
    line.append(make("td", "", row[choice.by]));
    line.append(...COLUMNS.map((name) => make("td", "", mark + show(row[name]))));
    return line;
  });
  at("rows").replaceChildren(...rows);
  const more = report.row_count - report.rows.length;
  at("rows-more").textContent = report.row_count === 0
    ? "Nothing yet in this window."
    : more > 0 ? `and ${whole.format(more)} more` : "";
}

function bar(share) {
  const outer = make("div", "bar");
  const inner = make("span");
  inner.style.width = `${Math.min(100, 100 * (share || 0))}%`;
  outer.append(inner);
  return outer;
}

function showFunnel(funnel) {
  at("funnel-section").hidden = !funnel;
  if (!funnel) return;
  at("funnel-title").textContent = `Funnel ${funnel.funnel}, within ${funnel.within}`;
  showLinks(at("funnels"), funnels.length > 1 ? funnels : [], "funnel", funnel.funnel);
  const items = funnel.steps.map((step) => {
    const item = make("li");
    const line = make("div", "step");
    const overall = step.overall_conversion;
    line.append(
      make("span", "event", `${step.step}. ${step.event}`),
      make("span", "reached", `${show(step.reached)} · ${show(overall)}`),
    );
    item.append(line, bar(overall.value));
    if (step.abandonment && step.abandonment.denominator) {
      const left = `${show(step.abandonment)} left here (${under(step.abandonment)})`;
      item.append(make("div", "left", left));
    }
    return item;
  });
  at("funnel").replaceChildren(...items);
}

function clock(iso) {
  return iso ? new Date(iso).toLocaleTimeString() : "the beginning";
}

function showFreshness(report) {
  const line = at("freshness");
  line.classList.toggle("complete", report.complete && !report.stale);
  const state = report.stale
    ? "The store is away; last known figures, as of"
    : report.complete ? "Complete as of" : "Not complete yet; as of";
  line.textContent = `${state} ${clock(report.as_of)}`;
}

function showAway(error) {
  const isRefusal = error instanceof Refused;
  document.body.classList.toggle("away", !isRefusal);
  at("freshness").classList.remove("complete");
  const away = "The server is away. The last figures stay until it is back.";
  const isSilent = error instanceof TypeError || error.name === "TimeoutError";
  at("notice").textContent = isSilent ? away : error.message;
  at("notice").hidden = false;
  if (isSilent) at("freshness").textContent = "Not connected";
}

async function poll() {
  try {
    const [report, funnel] = await Promise.all([freshReport(), freshFunnel()]);
    document.body.classList.remove("away");
    at("notice").hidden = true;
    at("site").textContent = report.site;
    showTiles(report.totals);
    showRows(report);
    showFunnel(funnel);
    showFreshness(report);
    polls += 1;
  } catch (error) {
    polls = 0;
    showAway(error);
  }
}

async function live() {
  showLinks(at("windows"), WINDOWS, "window", choice.window);
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((next) => setTimeout(next, POLL_MS));
  }
}

live();
