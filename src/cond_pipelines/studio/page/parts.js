// What all views share: requests, polling, and the small pieces that a view is made of.

import { Fragment, createContext, h, render } from "./vendor/preact.js";
import { useCallback, useContext, useEffect, useId, useMemo, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

// htm makes elements of template literals. Values are text or attributes, never HTML: file names and captions are safe.
export const html = htm.bind(h);
export { Fragment, createContext, render, useCallback, useContext, useEffect, useId, useMemo, useRef, useState };

// ------------------------------------------------------------------------------------------------- the server
/**
 * Ask the server: GET without a body, POST with one. Throws an Error with the server's own line.
 * signal: of an AbortController; the server stops a look at data that nobody waits for.
 */
export async function api(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const options = body === undefined ? {} : { method: "POST", headers, body: JSON.stringify(body), signal };
  let answer;
  try {
    answer = await fetch(`/api/${path}`, options);
  } catch {
    throw new Error("The server does not answer. Runs go on without it. Start `cond-pipelines studio` again.");
  }
  const result = await answer.json().catch(() => ({ error: `The server answers ${answer.status}` }));
  if (answer.ok) return result;
  throw new Error(result.error ?? `The server answers ${answer.status}`);
}

/** The query of a GET: {path: ["a", "b"], key: 1} as path=a&path=b&key=1. What is null or undefined has no place. */
export function query(values) {
  const pairs = Object.entries(values).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  return new URLSearchParams(pairs.filter(([, value]) => value !== undefined && value !== null)).toString();
}

/** [value, error]: the answer to a GET, now and every `everyMs`; null where there is no path yet. */
export function useAnswer(path, everyMs = 0) {
  const [answer, setAnswer] = useState({});
  useEffect(() => {
    if (!path) return undefined;
    let [isOver, timer, text, waitMs] = [false, 0, "", everyMs];
    const ask = async () => {
      try {
        const value = await api(path);
        waitMs = everyMs;
        // An answer like the last one draws nothing anew.
        if (!isOver && text !== (text = JSON.stringify(value))) setAnswer({ path, value });
      } catch (error) {
        waitMs = Math.min(Math.max(everyMs, 1000) * 4, waitMs * 2);
        text = "";
        if (!isOver) setAnswer((before) => ({ path, value: before.path === path ? before.value : undefined, error }));
      }
      if (!isOver && everyMs) timer = setTimeout(ask, document.hidden ? 4 * waitMs : waitMs);
    };
    ask();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [path, everyMs]);
  const isOfPath = answer.path === path;
  return [isOfPath ? answer.value : undefined, isOfPath ? answer.error : undefined];
}

export const Studio = createContext({ data: [], runs: [], models: [], jobs: [], folders: [] });
export const useStudio = () => useContext(Studio);

// ------------------------------------------------------------------------------------------------ where one is
/** The address after #: {view, path: [..], ...}: a view is linked to, and comes back after a reload. */
export function place() {
  const [view, text = ""] = location.hash.slice(1).split("?");
  const values = new URLSearchParams(text);
  return { view: view || "data", paths: values.getAll("path"), get: (name) => values.get(name) };
}

export const linkTo = (view, values = {}) => `#${view}?${query(values)}`;

export function goTo(view, values) {
  location.hash = linkTo(view, values);
}

/** A value that outlives a reload of the page, of this tab alone. */
export function useKept(name, initial) {
  const [value, setValue] = useState(() => JSON.parse(sessionStorage.getItem(name) ?? "null") ?? initial);
  useEffect(() => sessionStorage.setItem(name, JSON.stringify(value)), [value]);
  return [value, setValue];
}

// --------------------------------------------------------------------------------------------------- messages
let show = () => {};
export const notify = (text, kind = "good") => show({ text: String(text), kind, id: Math.random() });

/** Messages in the corner. Errors stay until they are closed. */
export function Messages() {
  const [messages, setMessages] = useState([]);
  const close = (id) => setMessages((all) => all.filter((message) => message.id !== id));
  show = (message) => {
    setMessages((all) => [...all.filter(({ text }) => text !== message.text), message].slice(-4));
    if (message.kind === "good") setTimeout(close, 5000, message.id);
  };
  return html`<div class="toasts" role="status" aria-live="polite">
    ${messages.map(
      ({ id, text, kind }) => html`<div key=${id} class="note ${kind}">
        <span>${text}</span>
        <button class="plain" aria-label="Close this message" onClick=${() => close(id)}>✕</button>
      </div>`,
    )}
  </div>`;
}

/** Do something that may fail: its error becomes a message. Returns undefined then. */
export async function attempt(task) {
  try {
    return await task();
  } catch (error) {
    notify(error.message, "bad");
    return undefined;
  }
}

// ---------------------------------------------------------------------------------------------------- controls
/** A button that shows that its task is under way, and that cannot be pressed twice. It keeps the focus. */
export function Act({ run, children, isMain = false, isOff = false, ...others }) {
  const [isBusy, setIsBusy] = useState(false);
  const press = async () => {
    if (isBusy) return;
    setIsBusy(true);
    await attempt(run);
    setIsBusy(false);
  };
  return html`<button type="button" class=${isMain ? "main" : ""} disabled=${isOff} aria-busy=${isBusy} onClick=${press} ...${others}>
    ${isBusy && html`<span class="busy" aria-hidden="true"></span>`}${children}
  </button>`;
}

/** A labelled control with its help: `children` is a function of the attributes that tie them together. */
export function Field({ label, help, children }) {
  const id = useId();
  const attributes = help ? { id, "aria-describedby": `${id}-help` } : { id };
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children(attributes)} ${help && html`<small id=${`${id}-help`}>${help}</small>`}
  </div>`;
}

export function NumberField({ label, help, value, onValue, ...others }) {
  const read = ({ target }) => onValue(target.value === "" || !target.validity.valid ? null : Number(target.value));
  return html`<${Field} label=${label} help=${help}>
    ${(tied) => html`<input type="number" step="any" value=${value ?? ""} onInput=${read} ...${tied} ...${others} />`}
  <//>`;
}

export function TextField({ label, help, value, onValue, ...others }) {
  return html`<${Field} label=${label} help=${help}>
    ${(tied) =>
      html`<input type="text" value=${value ?? ""} onInput=${(e) => onValue(e.target.value)} ...${tied} ...${others} />`}
  <//>`;
}

/** options: values, or [value, text] pairs. */
export function Choice({ label, help, value, options, onValue, ...others }) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  return html`<${Field} label=${label} help=${help}>
    ${(tied) => html`<select onChange=${(e) => onValue(e.target.value)} ...${tied} ...${others}>
      ${pairs.map(([one, text]) => html`<option value=${one} selected=${one === value}>${text}</option>`)}
    </select>`}
  <//>`;
}

export function Check({ label, value, onValue }) {
  return html`<label class="check">
    <input type="checkbox" checked=${value} onChange=${(e) => onValue(e.target.checked)} />${label}
  </label>`;
}

// ------------------------------------------------------------------------------------------------ what is shown
export const Empty = ({ children }) => html`<div class="empty">${children}</div>`;
export const Problem = ({ error }) => error && html`<p class="note bad" role="alert">${error.message ?? error}</p>`;
export const Waiting = ({ children }) => html`<p class="soft row" role="status"><span class="busy"></span>${children}</p>`;
export const Badge = ({ state }) => html`<span class="badge ${state}">${state}</span>`;

export const number = (value) => (value ?? null) === null ? "–" : Number(value).toLocaleString("en");
export const short = (value, digits = 4) => ((value ?? null) === null ? "–" : String(+Number(value).toPrecision(digits)));

export function duration(sec) {
  if ((sec ?? null) === null) return "–";
  if (sec < 90) return `${Math.round(sec)} s`;
  if (sec < 5400) return `${Math.round(sec / 60)} min`;
  return `${(sec / 3600).toFixed(1)} h`;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  const power = Math.min(3, Math.floor(Math.log10(Math.max(1, count)) / 3));
  return `${+(count / 1000 ** power).toPrecision(3)} ${units[power]}`;
}

export const fileUrl = (path, mark) => `/api/file?${query({ path, mark })}`;
export const nameOf = (path) => path.split("/").pop();

/** pairs: [term, value], those without a value are not shown. */
export function Facts({ pairs }) {
  const shown = pairs.filter(([, value]) => (value ?? "") !== "");
  return html`<dl class="facts">
    ${shown.map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** A bar for each of [name, count]. */
export function Bars({ rows, most = 40 }) {
  const top = Math.max(1, ...rows.map(([, count]) => count));
  return html`<div class="bars">
      ${rows.slice(0, most).map(
        ([name, count]) => html`<span title=${name}>${name}</span><i style=${{ width: `${(100 * count) / top}%` }}></i>
          <span>${number(count)}</span>`,
      )}
    </div>
    ${rows.length > most && html`<p class="soft">and ${number(rows.length - most)} more</p>`}`;
}

/** A command that can be copied into a terminal. */
export function Command({ text, label = "The same in a terminal" }) {
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    notify("Copied");
  };
  return html`<div class="field">
    <div class="head"><h3>${label}</h3><${Act} run=${copy}>Copy<//></div>
    <pre class="command" tabindex="0" aria-label=${label}>${text}</pre>
  </div>`;
}

export function Table({ head, rows, label }) {
  return html`<div class="table" tabindex="0" role="region" aria-label=${label}>
    <table>
      <thead><tr>${head.map((cell) => (cell.length ? html`<th scope="col">${cell}</th>` : html`<td></td>`))}</tr></thead>
      <tbody>${rows.map((row) => html`<tr>${row.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
    </table>
  </div>`;
}

/** The processes of some kinds that this server has started, newest first. */
export function Jobs({ kinds, path, most = 4 }) {
  const jobs = useStudio().jobs.filter((job) => kinds.includes(job.kind) && (!path || job.path === path));
  if (!jobs.length) return null;
  return html`<section class="card" aria-label="Processes">
    <h2>Processes</h2>
    ${jobs.slice(0, most).map((job) => html`<${Job} key=${job.id} job=${job} />`)}
  </section>`;
}

function Job({ job }) {
  const [isOpen, setIsOpen] = useState(job.state !== "done");
  const [details] = useAnswer(isOpen && `jobs/${job.id}`, job.state === "running" ? 1000 : 0);
  const link = job.state === "done" && /^https?:\/\/\S+$/.exec(job.message ?? "");
  return html`<details open=${isOpen} onToggle=${(event) => setIsOpen(event.target.open)}>
    <summary>${job.kind} of ${nameOf(job.path ?? "")} <${Badge} state=${job.state} /></summary>
    <div class="field">
      <p class="job-message">${link ? html`<a href=${link[0]} rel="noreferrer">${link[0]}</a>` : job.message}</p>
      ${isOpen && html`<pre class="tail" tabindex="0" aria-label="Its output">${details?.output || "…"}</pre>`}
      ${job.state === "running" &&
      html`<div class="row"><${Act} run=${() => api("jobs/stop", { id: job.id })}>Stop it<//></div>`}
    </div>
  </details>`;
}

/** One of several paths, by name; `items` have path and name. */
export function PathChoice({ label, items, value, onValue, none }) {
  const names = items.map(({ path, name }) => [path, name ?? nameOf(path)]);
  return html`<${Choice} label=${label} value=${value ?? ""} onValue=${onValue} options=${none ? [["", none], ...names] : names} />`;
}
