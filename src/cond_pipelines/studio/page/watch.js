// View 3: what a run has learned when. A condition is a row, a checkpoint a column, the noise is the same everywhere.

import { conditionOf } from "./play.js";
import { Plot } from "./plot.js";
import { Act, Empty, Field, NumberField, PathChoice, Problem, Waiting } from "./parts.js";
import { api, fileUrl, goTo, html, linkTo, number, query, short, useAnswer, useEffect, useMemo, useRef, useState, useStudio } from "./parts.js";

const [MOST_COLUMNS, MOST_ROWS, FILM_MS] = [10, 8, 450];

export default function Watch({ here }) {
  const runs = useStudio().runs.filter(({ checkpoints, has_model: hasModel, samples }) => checkpoints.length || hasModel || samples.length);
  const run = runs.find(({ path }) => path === here.paths[0]) ?? runs[0];
  const mark = run && [run.checkpoints.length, run.checkpoints.at(-1), run.has_model, run.samples.length, run.held_out_loss].join();
  const [watched, error] = useAnswer(run && `watch?${query({ path: run.path, mark })}`);
  if (!run) return html`<${Empty}>No run has a checkpoint or samples yet. <a href=${linkTo("run", { new: 1 })}>Start a run</a><//>`;
  return html`<div class="field stack">
    <div class="head">
      <${PathChoice} label="Run" items=${runs} value=${run.path} onValue=${(path) => goTo("watch", { path })} />
    </div>
    <${Problem} error=${error} />
    ${!watched && !error && html`<${Waiting}>Looking<//>`}
    ${watched?.points.length > 0 && html`<${Learned} key=${run.path} run=${run} watched=${watched} />`}
    ${watched?.grids.length > 0 && html`<${Drawn} key=${`drawn ${run.path}`} grids=${watched.grids} />`}
  </div>`;
}

/** Of many, some: the first, the last, and those between evenly. */
function thinned(all, most) {
  if (all.length <= most) return all;
  return Array.from({ length: most }, (_, i) => all[Math.round((i * (all.length - 1)) / (most - 1))]);
}

function rowsOf(model, text) {
  const lines = text.split("\n").filter((line) => line.trim());
  if (lines.length) return lines.slice(0, 16).map((title) => ({ condition: conditionOf(model, title), seed: 0, title }));
  const known = model.classes.length ? model.classes : model.examples;
  if (!known.length) return [0, 1, 2, 3].map((seed) => ({ condition: null, seed, title: `noise ${seed}` }));
  return known.slice(0, MOST_ROWS).map((title) => ({ condition: conditionOf(model, String(title)), seed: 0, title: String(title) }));
}

/** {model: urls or an error} of the columns, one after the other; the server keeps what was drawn once. */
function useCells(points, rows, sampling) {
  const request = rows && JSON.stringify({ conditions: rows.map((row) => row.condition), seeds: rows.map((row) => row.seed), ...sampling });
  const names = points.map(({ model, step }) => `${model} ${step}`).join("\n");
  const [cells, setCells] = useState({});
  useEffect(() => {
    if (!request) return undefined;
    let isOver = false;
    setCells({});
    (async () => {
      for (const { model } of points) {
        if (isOver) return;
        const column = await api("draw", { model, ...JSON.parse(request) }).catch((error) => ({ error }));
        if (!isOver) setCells((all) => ({ ...all, [model]: column }));
      }
    })();
    return () => (isOver = true);
  }, [request, names]);
  return cells;
}

function Learned({ run, watched }) {
  const points = useMemo(() => thinned(watched.points, MOST_COLUMNS), [watched]);
  const [model, error] = useAnswer(`model?${query({ path: points.at(-1).model })}`);
  const [text, setText] = useState("");
  const [sampling, setSampling] = useState({ num_inference_steps: 8 });
  const rows = useMemo(() => model && rowsOf(model, text), [model, text]);
  const cells = useCells(points, rows, sampling);
  const [[row, column], setCell] = useState([0, points.length - 1]);
  const at = Math.min(column, points.length - 1);
  const point = points[at];
  const set = (name) => (value) => setSampling({ ...sampling, [name]: value ?? undefined });
  const failed = Object.values(cells).find((one) => one.error);
  const numDrawn = Object.keys(cells).length;
  return html`<section class="card" aria-label="Grid of condition by checkpoint">
      <div class="head"><h2>The same noise, from checkpoint to checkpoint</h2></div>
      <${Problem} error=${error ?? failed?.error} />
      ${rows && numDrawn < points.length && html`<${Waiting}>Drawing ${numDrawn + 1} of ${points.length}<//>`}
      ${rows && html`<${Grid} points=${points} rows=${rows} cells=${cells} cell=${[row, at]} setCell=${setCell} />`}
      <${Time} points=${points} at=${at} onAt=${(next) => setCell([row, next])} />
      ${rows && html`<div class="halves">
        <${Large} url=${cells[point.model]?.images?.[row]} title=${`${rows[row]?.title}, ${point.label}`} />
        <div class="field stack">
          <${ChooseModel} run=${run} point=${point} lengths=${watched.ema_lengths} />
          <details>
            <summary>Settings of the grid</summary>
            <div class="fields small">
              <${NumberField} label="Steps" value=${sampling.num_inference_steps} min="1" max="1000" step="1"
                onValue=${set("num_inference_steps")} />
              <${NumberField} label="Guidance" value=${sampling.guidance_scale}
                placeholder=${short(model.guidance_scale)} onValue=${set("guidance_scale")} />
            </div>
            ${rows[0]?.condition !== null && html`<${Field} label="Conditions" help="One a line.">
              ${(tied) => html`<textarea rows="4" placeholder=${rows.map(({ title }) => title).join("\n")}
                onChange=${(e) => setText(e.target.value)} ...${tied}></textarea>`}
            <//>`}
          </details>
        </div>
      </div>`}
      <div class="halves">
        <${Under} title="Held-out loss" points=${watched.held_out} at=${point.step} />
        <${Under} title="Copies of training images" points=${watched.copies} at=${point.step} />
        ${Object.entries(watched.measures ?? {}).map(
          ([name, points]) => html`<${Under} key=${name} title=${name.replaceAll("_", " ")} points=${points} at=${point.step} />`,
        )}
      </div>
    </section>`;
}

function Under({ title, points, at }) {
  const series = useMemo(() => [{ name: title.toLowerCase(), isDots: true, points: points ?? [] }], [points]);
  if (!points?.length) return null;
  return html`<div><h3>${title}</h3><${Plot} label=${title} series=${series} marker=${at} height=${170} /></div>`;
}

/** The table of images; arrow keys move through it. */
function Grid({ points, rows, cells, cell: [row, column], setCell }) {
  const table = useRef();
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -points.length], End: [0, points.length] };
  const within = (value, count) => Math.min(count - 1, Math.max(0, value));
  const pressed = (event) => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const next = [within(row + move[0], rows.length), within(column + move[1], points.length)];
    setCell(next);
    table.current.rows[next[0] + 1].cells[next[1] + 1].focus();
  };
  const cellOf = (point, title, i, j) => {
    const url = cells[point.model]?.images?.[i];
    const isChosen = i === row && j === column;
    return html`<td class=${isChosen ? "chosen" : ""} tabindex=${isChosen ? 0 : -1} aria-selected=${isChosen} onClick=${() => setCell([i, j])}>
      ${url ? html`<img class="pixels" src=${url} alt=${`${title}, ${point.label}`} />` : html`<span
        class="blank"><span class="unseen">not drawn yet</span></span>`}
    </td>`;
  };
  return html`<div class="table">
    <table class="grid" role="grid" aria-label="Condition by checkpoint" ref=${table} onKeyDown=${pressed}>
      <thead><tr><td></td>${points.map(({ label, model }) => html`<th scope="col" key=${model}>${label}</th>`)}</tr></thead>
      <tbody>
        ${rows.map(({ title }, i) => html`<tr key=${title}><th
          scope="row">${title}</th>${points.map((point, j) => cellOf(point, title, i, j))}</tr>`)}
      </tbody>
    </table>
  </div>`;
}

/** A slider through the checkpoints, and a film of them. Whoever goes elsewhere meanwhile ends the film. */
function Time({ points, at, onAt }) {
  const [isPlaying, setIsPlaying] = useState(false);
  const reached = useRef();
  const end = points.length - 1;
  const go = (to) => onAt((reached.current = to));
  useEffect(() => {
    if (!isPlaying) return undefined;
    if (at === end || at !== reached.current) return setIsPlaying(false);
    const timer = setTimeout(() => go(at + 1), FILM_MS);
    return () => clearTimeout(timer);
  }, [isPlaying, at]);
  const play = () => {
    if (!isPlaying) go(at === end ? 0 : at);
    setIsPlaying(!isPlaying);
  };
  return html`<div class="row film">
    <button type="button" onClick=${play}>${isPlaying ? "Stop the film" : "Play the film"}</button>
    <input type="range" aria-label="Time" min="0" max=${end} step="1" value=${at} aria-valuetext=${points[at].label}
      onInput=${(event) => onAt(Number(event.target.value))} />
    <output class="label">${points[at].label}</output>
  </div>`;
}

function Large({ url, title }) {
  return html`<figure>
    ${url ? html`<img class="big pixels" src=${url} alt=${title} />` : html`<div class="big"></div>`}
    <figcaption>${title}</figcaption>
  </figure>`;
}

function ChooseModel({ run, point, lengths }) {
  const [length, setLength] = useState(null);
  const [made, setMade] = useState();
  const choose = (what) => async () => setMade((await api("watch/choose", { path: run.path, ...what })).path);
  const [least, most] = lengths ?? [];
  return html`<div class="row"><${Act} run=${choose({ model: point.model })} isMain>Make this the model<//><span
    class="soft">${point.label}</span></div>
    ${lengths && html`<${NumberField} label="Or an average of any length (EMA)" value=${length} min=${least}
      max=${most} step="any" placeholder=${short((least + most) / 2, 2)} onValue=${setLength}
      help=${`A fraction of the run, from ${short(least, 2)} to ${short(most, 2)}: long ones are smoother, short ones newer.`} />
      <div class="row"><${Act} run=${choose({ ema_length: length ?? (least + most) / 2 })}>Make this average the model<//></div>`}
    ${made && html`<p class="note good" role="status">It is in ${made}. ${" "}<a
      href=${linkTo("play", { path: made })}>Play</a> ${" "}<a href=${linkTo("share", { path: made })}>Share</a></p>`}`;
}

/** The grids that the run itself drew. */
function Drawn({ grids }) {
  const [at, setAt] = useState(grids.length - 1);
  const points = grids.map(({ step }) => ({ label: `step ${number(step)}` }));
  const grid = grids[Math.min(at, grids.length - 1)];
  return html`<section class="card" aria-label="Samples of the run">
    <h2>What the run drew while it learned</h2>
    <img class="sheet pixels small-sheet" src=${fileUrl(grid.path)} alt=${`Samples after step ${grid.step}`} />
    ${grids.length > 1 && html`<${Time} points=${points} at=${Math.min(at, grids.length - 1)} onAt=${setAt} />`}
  </section>`;
}
