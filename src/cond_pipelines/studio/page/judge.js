// View 5: run an evaluation, read its report, compare several, and the trade-off that a sweep shows.

import { Fields } from "./form.js";
import { Act, Check, Choice, Empty, Jobs, PathChoice, Problem, Table, Waiting } from "./parts.js";
import { api, fileUrl, goTo, html, linkTo, nameOf, notify, number, query, short } from "./parts.js";
import { useAnswer, useKept, useState, useStudio } from "./parts.js";
import { usableModels } from "./share.js";

const FIRST_FIELDS = ["num_samples", "feature_extractor", "num_inference_steps", "guidance_scale", "sweep"];

export default function Judge({ here }) {
  const studio = useStudio();
  const models = usableModels(studio);
  const numDone = studio.jobs.filter(({ state }) => state === "done").length;
  const [answer, error] = useAnswer(`reports?${query({ mark: numDone })}`, 5000);
  const reports = answer?.reports ?? [];
  const names = Object.fromEntries(studio.models.map(({ path, name }) => [path, name]));
  const known = here.paths.filter((path) => reports.some((report) => report.path === path));
  const chosen = known.length || here.paths.length ? known : reports.slice(0, 1).map(({ path }) => path);
  const model = models.find(({ path }) => path === here.paths[0]) ?? models[0];
  const toggle = (path) => (isOn) => goTo("judge", { path: isOn ? [...chosen, path] : chosen.filter((one) => one !== path) });
  if (!model && !reports.length) return html`<${Empty}>No finished model yet. <a href=${linkTo("run", { new: 1 })}>Start a run</a><//>`;
  return html`<div class="split">
    <div>
      <section class="card" aria-label="Reports">
        <h2>Reports</h2>
        <${Problem} error=${error} />
        ${reports.length === 0 && html`<p class="soft">None yet.</p>`}
        <ul class="list">
          ${reports.map(({ path, sweep }) => html`<li key=${path}>
            <${Check} label=${`${names[path] ?? nameOf(path)}${sweep ? " (sweep)" : ""}`}
              value=${chosen.includes(path)} onValue=${toggle(path)} />
          </li>`)}
        </ul>
        ${reports.length > 1 && html`<p class="soft">Choose two or more to compare them.</p>`}
      </section>
      ${model && html`<${Evaluate} models=${models} first=${model.path} />`}
    </div>
    <div>
      <${Jobs} kinds=${["evaluate", "sweep"]} />
      ${chosen.length > 1 && html`<${Compared} paths=${chosen} />`}
      ${chosen.map((path) => html`<${Report} key=${path} path=${path} mark=${numDone} isOpen=${chosen.length === 1} />`)}
    </div>
  </div>`;
}

function Evaluate({ models, first }) {
  const [chosen, setChosen] = useState();
  const path = chosen ?? first;
  const [args, setArgs] = useKept("evaluation", {});
  const [form, error] = useAnswer("evaluate/form");
  const fields = form?.groups.flatMap((group) => group.fields) ?? [];
  const start = async () => {
    await api("evaluate", { model: path, args });
    notify("The evaluation has started.");
  };
  return html`<section class="card" aria-label="Evaluate">
    <h2>Evaluate</h2>
    <${PathChoice} label="Model" items=${models} value=${path} onValue=${setChosen} />
    <${Problem} error=${error} />
    <${Fields} fields=${FIRST_FIELDS.flatMap((name) => fields.filter((field) => field.name === name))} values=${args} onValues=${setArgs} />
    <details>
      <summary>More settings</summary>
      <${Fields} fields=${fields.filter(({ name }) => !FIRST_FIELDS.includes(name))} values=${args} onValues=${setArgs} />
    </details>
    <${Act} run=${start} isMain>Evaluate<//>
  </section>`;
}

const interval = (row) => (row.interval ? html`<span class="soft">[${row.interval.map((end) => short(end)).join(", ")}]</span>` : "");

function Report({ path, mark, isOpen }) {
  const [answer, error] = useAnswer(`report?${query({ path, mark })}`);
  if (error) return html`<${Problem} error=${error} />`;
  if (!answer) return html`<${Waiting}>Reading the report<//>`;
  const { report, files, sweep } = answer;
  const pictures = files.filter((file) => /\.png$/.test(file));
  const page = files.find((file) => /\.html$/.test(file));
  return html`<section class="card report" aria-label=${`Report of ${nameOf(path)}`}>
    <div class="head">
      <h2>${nameOf(path)}</h2>
      ${page && html`<a class="button" href=${fileUrl(page)} target="_blank" rel="noreferrer">The whole report</a>`}
    </div>
    ${report && html`<p class="soft">${number(report.num_samples)} samples against ${number(report.num_train)} training images and
      ${" "}${number(report.num_held_out)} held-out ones, ${report.num_inference_steps} steps${scaleOf(report) === null ? "" : `, guidance scale ${short(scaleOf(report))}`}.
      Features of ${report.feature_extractor}.</p>
      <${Table} label="Measures" head=${["question", "measure", "value", "95 % interval", "real images", "better"]}
        rows=${report.measures.map((row) => [row.question, row.name, short(row.value), interval(row), row.real === null ? "" : short(row.real), row.better])} />`}
    ${sweep && html`<${TradeOff} reports=${sweep} />`}
    ${pictures.length > 0 && html`<details open=${isOpen}>
      <summary>Pictures</summary>
      <div class="halves">
        ${pictures.map((file) => html`<figure key=${file}><img class="sheet" loading="lazy" src=${fileUrl(file, mark)}
          alt=${nameOf(file)} /><figcaption>${nameOf(file)}</figcaption></figure>`)}
      </div>
    </details>`}
  </section>`;
}

function Compared({ paths }) {
  const [answer, error] = useAnswer(`compare?${query({ path: paths })}`);
  if (error) return html`<${Problem} error=${error} />`;
  if (!answer) return html`<${Waiting}>Comparing<//>`;
  return answer.pairs.map(
    ({ a, b, rows }) => html`<section class="card" key=${a + b} aria-label="Comparison">
      <h2>${nameOf(a)} (A) and ${nameOf(b)} (B)</h2>
      <${Table} label="Comparison" head=${["measure", "A", "B", "intervals", "verdict"]}
        rows=${rows.map((row) => [
          row.name,
          ...[row.a, row.b].map((one) => one && html`${short(one.value)} ${interval(one)}`), // null: only the other has it
          row.a && row.b && html`<${Intervals} a=${row.a} b=${row.b} />`,
          html`<span class=${/better/.test(row.verdict) ? "verdict" : "soft"}>${row.verdict}</span>`,
        ])} />
    </section>`,
  );
}

/** Two intervals, one above the other, on the same scale. */
function Intervals({ a, b }) {
  if (!a.interval || !b.interval) return null;
  const ends = [...a.interval, ...b.interval];
  const [least, most] = [Math.min(...ends), Math.max(...ends)];
  const x = (value) => 4 + (112 * (value - least)) / (most - least || 1);
  const bar = (row, y, name) => html`<g class=${name}>
    <line x1=${x(row.interval[0])} x2=${x(row.interval[1])} y1=${y} y2=${y} /><circle cx=${x(row.value)} cy=${y} r="3.5" />
  </g>`;
  return html`<svg class="intervals" viewBox="0 0 120 24" width="120" height="24" aria-hidden="true">${bar(a, 7, "a")}${bar(b, 17, "b")}</svg>`;
}

/** Each setting of a sweep a point: two measures against one another, with their intervals. */
function TradeOff({ reports }) {
  const names = reports[0].measures.map(({ name }) => name);
  const first = (...wanted) => wanted.find((name) => names.includes(name)) ?? names[0];
  const [across, setAcross] = useState(first("recall"));
  const [up, setUp] = useState(first("precision", "Frechet distance"));
  const row = (report, name) => report.measures.find((one) => one.name === name);
  const points = reports.map((report) => ({ x: row(report, across), y: row(report, up), text: settingOf(report) }));
  const scale = (values, from, to) => {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return [(value) => from + ((to - from) * (value - least)) / (most - least || 1), least, most];
  };
  const ends = (side) => points.flatMap((point) => [point[side].value, ...(point[side].interval ?? [])]);
  const [[x, left, right], [y, bottom, top]] = [scale(ends("x"), 60, 500), scale(ends("y"), 250, 20)];
  const error = ({ x: a, y: b }) => html`${a.interval && html`<line x1=${x(a.interval[0])} x2=${x(a.interval[1])}
    y1=${y(b.value)} y2=${y(b.value)} />`}
    ${b.interval && html`<line x1=${x(a.value)} x2=${x(a.value)} y1=${y(b.interval[0])} y2=${y(b.interval[1])} />`}`;
  const label = points.map((point) => `${point.text}: ${across} ${short(point.x.value)}, ${up} ${short(point.y.value)}`).join("; ");
  return html`<section class="field stack" aria-label="Trade-off">
    <h3>The trade-off</h3>
    <div class="fields">
      <${Choice} label="Across" options=${names} value=${across} onValue=${setAcross} />
      <${Choice} label="Up" options=${names} value=${up} onValue=${setUp} />
    </div>
    <svg class="trade" viewBox="0 0 560 300" role="img" aria-label=${`Trade-off. ${label}`}>
      <path d="M50 15V260H520" fill="none" />
      <text x="50" y="278">${short(left, 3)}</text><text x="500" y="278"
        text-anchor="end">${short(right, 3)}</text><text x="285" y="293" text-anchor="middle">${across}</text>
      <text x="45" y="260" text-anchor="end">${short(bottom, 3)}</text><text x="45" y="25"
        text-anchor="end">${short(top, 3)}</text><text x="55" y="12">${up}</text>
      <polyline fill="none" points=${points.map((point) => `${x(point.x.value)},${y(point.y.value)}`).join(" ")} />
      ${points.map((point, i) => {
        const [left, top] = [x(point.x.value), y(point.y.value)];
        const isNear = (other) => Math.hypot(x(other.x.value) - left, y(other.y.value) - top) < 20;
        const above = 10 + 20 * points.slice(0, i).filter(isNear).length; // so that no text lies on another
        return html`<g class="a" key=${point.text}>${error(point)}<circle cx=${left} cy=${top} r="4.5" />
          <text x=${left} y=${top - above} text-anchor="middle">${point.text}</text></g>`;
      })}
    </svg>
  </section>`;
}

/** Of the guidance; null: p(x) has none. */
const scaleOf = (report) => report.guide_scale ?? report.guidance_scale ?? null;
const settingOf = (report) => `${scaleOf(report) === null ? "" : `${short(scaleOf(report))} · `}${report.num_inference_steps} steps`;
