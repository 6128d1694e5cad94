// View 2: start a run, watch its curves, pause it, continue it; several runs over one another.

import { SETTINGS } from "./data.js";
import { Groups } from "./form.js";
import { Plot } from "./plot.js";
import { Act, Badge, Check, Command, Empty, Facts, Problem, Table, TextField, Waiting } from "./parts.js";
import { api, duration, fileUrl, goTo, html, linkTo, nameOf, notify, number, query, short } from "./parts.js";
import { useAnswer, useEffect, useKept, useRef, useState, useStudio } from "./parts.js";

const EVERY_MS = 2000;
const ACTIVE = ["starting", "running"];

export default function Run({ here }) {
  const { runs } = useStudio();
  const isNew = here.get("new") || !runs.length;
  const main = isNew ? undefined : (runs.find(({ path }) => path === here.paths[0]) ?? runs[0]);
  const others = here.paths.slice(1).filter((path) => runs.some((run) => run.path === path));
  const add = (path) => (isAdded) =>
    goTo("run", { path: [main.path, ...(isAdded ? [...others, path] : others.filter((one) => one !== path))] });
  return html`<div class="split">
    <nav class="card" aria-label="Runs">
      <a class="button" href=${linkTo("run", { new: 1 })} aria-current=${isNew ? "true" : undefined}>New run</a>
      ${runs.length > 0 && html`<ul class="list">
        ${runs.map(
          (run) => html`<li key=${run.path}>
            <a class="item" href=${linkTo("run", { path: run.path })} aria-current=${run === main ? "true" : undefined}>
              <span>${run.name}</span><${Badge} state=${run.state} />
            </a>
            ${main && run !== main &&
            html`<${Check} label=${`compare ${run.name}`} value=${others.includes(run.path)} onValue=${add(run.path)} />`}
          </li>`,
        )}
      </ul>`}
    </nav>
    <div>${isNew ? html`<${NewRun} />` : html`<${OneRun} key=${main.path} run=${main} others=${others} />`}</div>
  </div>`;
}

// ------------------------------------------------------------------------------------------------------ one run
function OneRun({ run, others }) {
  const isActive = ACTIVE.includes(run.state);
  return html`<section class="card" aria-label="The run">
      <div class="head"><h2>${run.name} <${Badge} state=${run.state} /></h2><${Actions} run=${run} isActive=${isActive} /></div>
      ${isActive &&
      html`<progress max="1" value=${run.fraction ?? undefined} aria-label=${`Progress of ${run.name}`}></progress>`}
      <${Facts} pairs=${[
        ["step", run.num_steps ? `${number(run.step)} of ${number(run.num_steps)}` : number(run.step)],
        ["time left", isActive ? duration(run.left_sec) : ""],
        ["trained for", duration(run.elapsed_sec)],
        ["images/s", run.images_per_sec && short(run.images_per_sec, 3)],
        ["loss", run.loss && short(run.loss)],
        ["held-out loss", run.held_out_loss && short(run.held_out_loss)],
      ]} />
      ${run.message && html`<p class=${run.state === "failed" ? "note bad" : "note"} id="run-message">${run.message}</p>`}
    </section>
    <${Curves} run=${run} paths=${[run.path, ...others]} isActive=${isActive} />
    ${others.length > 0 && html`<${Differences} paths=${[run.path, ...others]} />`}
    ${run.newest_grid &&
    html`<section class="card">
      <h2>Newest samples <small>step ${number(run.samples.at(-1))}</small></h2>
      <img class="sheet pixels small-sheet" id="newest" src=${fileUrl(run.newest_grid, run.samples.at(-1))} alt="What the run drew last" />
    </section>`}
    <${Output} run=${run} isActive=${isActive} />`;
}

function Actions({ run, isActive }) {
  const [isSure, setIsSure] = useState(false);
  const post = (what) => async () => notify((await api(`runs/${what}`, { path: run.path })).done);
  const stop = async () => {
    if (isSure) await post("stop")();
    setIsSure(!isSure);
  };
  const to = (view) => html`<a class="button" href=${linkTo(view, { path: run.path })}>${view[0].toUpperCase() + view.slice(1)}</a>`;
  if (isActive) {
    return html`<div class="row">
      <${Act} run=${post("pause")} isMain>Pause<//>
      ${run.state === "running" && html`<${Act} run=${post("sample")}>Sample now<//><${Act} run=${post("save")}>Save now<//>`}
      <${Act} run=${stop}>${isSure ? "Stop without saving" : "Stop"}<//>
    </div>`;
  }
  return html`<div class="row">
    ${run.checkpoints.length > 0 && run.state !== "finished" && html`<${Act} run=${post("continue")} isMain>Continue<//>`}
    ${run.checkpoints.length + run.has_model > 0 && ["watch", "play"].map(to)} ${run.has_model && ["judge", "share"].map(to)}
  </div>`;
}

const pairs = (xs, ys) => xs.map((x, i) => [x, ys[i]]).filter(([, y]) => y !== null);

function Curves({ run, paths, isActive }) {
  const [isLog, setIsLog] = useKept("is-log", false);
  const address = run.state !== "starting" && `runs/log?${query({ path: paths, points: 600 })}`;
  const [answer, error] = useAnswer(address, isActive ? EVERY_MS : 0);
  const logs = answer ? paths.map((path, i) => [path, answer.logs[i]]) : [];
  const prefix = (path) => (paths.length > 1 ? `${nameOf(path)}: ` : "");
  const of = (name) => logs.map(([path, log], i) => ({ name: prefix(path) + name, color: i, points: pairs(log.step, log[name]) }));
  const loss = logs.flatMap(([path, log], i) => [
    { name: `${prefix(path)}loss`, color: 2 * i, points: pairs(log.step, log.loss) },
    { name: `${prefix(path)}held-out loss`, color: 2 * i + 1, isDots: true, points: log.held_out },
  ]);
  const measures = [...new Set(logs.flatMap(([, log]) => Object.keys(log.measures ?? {})))];
  const ofMeasure = (name) => logs.map(([path, log], i) => ({ name: prefix(path) + name, color: i, isDots: true, points: log.measures[name] ?? [] }));
  if (error) return html`<${Problem} error=${error} />`;
  if (!logs.some(([, log]) => log.num_lines)) return isActive ? html`<${Waiting}>The first line of the log comes soon<//>` : null;
  return html`<section class="card" aria-label="Curves">
    <div class="head"><h2>Loss</h2><${Check} label="logarithmic" value=${isLog} onValue=${setIsLog} /></div>
    <${Plot} label="Loss" series=${loss} isLog=${isLog} height=${260} />
    <div class="halves">
      <div><h3>Learning rate</h3><${Plot} label="Learning rate" series=${of("lr")} height=${170} /></div>
      <div><h3>Images per second</h3><${Plot} label="Images per second" series=${of("images_per_sec")} height=${170} /></div>
      ${measures.map((name) => html`<div key=${name}><h3>${name.replaceAll("_", " ")}</h3>
        <${Plot} label=${name} series=${ofMeasure(name)} height=${170} /></div>`)}
    </div>
  </section>`;
}

function Differences({ paths }) {
  const [answer, error] = useAnswer(`runs/differences?${query({ path: paths })}`);
  const rows = (answer?.rows ?? []).map(({ name, values }) => [name, ...values.map((value) => JSON.stringify(value) ?? "–")]);
  return html`<section class="card">
    <h2>What differs</h2>
    <${Problem} error=${error} />
    ${answer && (rows.length ? html`<${Table} label="Settings that differ" head=${["setting", ...paths.map(nameOf)]}
      rows=${rows} />` : "Nothing.")}
  </section>`;
}

function Output({ run, isActive }) {
  const [isOpen, setIsOpen] = useState(run.state === "failed");
  const [output, error] = useAnswer(isOpen && `runs/output?${query({ path: run.path })}`, isActive ? EVERY_MS : 0);
  return html`<section class="card"><details open=${isOpen} onToggle=${(event) => setIsOpen(event.target.open)}>
    <summary>What it printed</summary>
    ${isOpen && html`<${Problem} error=${error} /><pre class="tail" tabindex="0" aria-label="What it printed">${output?.text || "…"}</pre>`}
  </details></section>`;
}

// ------------------------------------------------------------------------------------------------------ a new run
function freeName(args, runs) {
  const base = `${nameOf(args.train_data_dir ?? "run")}-${args.conditioning ?? "none"}`;
  const taken = new Set(runs.map(({ path }) => nameOf(path)));
  return [base, ...Array.from({ length: 999 }, (_, i) => `${base}-${i + 2}`)].find((name) => !taken.has(name));
}

/** [plan, error, whether it is under way] of these arguments, a moment after they changed last. */
function usePlan(args) {
  const [plan, setPlan] = useState({});
  const text = JSON.stringify(args);
  const now = useRef();
  now.current = text;
  useEffect(() => {
    if (!args.train_data_dir && !args.dataset_name) return undefined;
    const controller = new AbortController(); // a plan of before the last change keeps nobody waiting
    const timer = setTimeout(async () => {
      const answer = api("train/plan", { args }, controller.signal);
      const next = await answer.then((value) => ({ value, text }), (error) => ({ error, text }));
      if (now.current === text) setPlan(next);
    }, 500);
    return () => (clearTimeout(timer), controller.abort());
  }, [text]);
  const isNew = plan.text === text;
  return [plan.value?.problem ? undefined : plan.value, isNew ? (plan.error ?? plan.value?.problem) : undefined, !isNew];
}

function NewRun() {
  const { runs, data } = useStudio();
  const [form, formError] = useAnswer("train/form");
  const [args, setArgs] = useKept("train", {});
  const [filter, setFilter] = useState("");
  const chosen = { train_data_dir: data[0]?.path, ...args };
  const name = args.output_dir ?? freeName(chosen, runs);
  const all = { ...chosen, output_dir: name };
  const [plan, error, isWaiting] = usePlan(all);
  if (!form) return html`<${Problem} error=${formError} /><${Waiting}>Reading the settings<//>`;
  const start = async () => {
    const { path } = await api("train/start", { args: all });
    const { output_dir: _, ...others } = args;
    setArgs(others);
    setTimeout(() => goTo("run", { path }));
  };
  const groups = form.groups.map((group) => ({ ...group, fields: group.fields.filter((field) => field.name !== "output_dir") }));
  const options = { train_data_dir: data.map(({ path, name: text }) => [path, text]), conditioning: SETTINGS };
  return html`<section class="card" aria-label="A new run">
      <div class="head"><h2>New run</h2><${Act} run=${start} isMain>Start<//></div>
      <${TextField} label="Name of the run" value=${name} help="The folder that it writes, in the first folder of the studio."
        onValue=${(value) => setArgs({ ...args, output_dir: value || undefined })} />
      <${Problem} error=${error} />
      ${/on_bad_image/.test(error?.message ?? error) && html`<div class="row">
        <${Act} run=${() => setArgs({ ...args, on_bad_image: "skip" })}>Leave such images out<//></div>`}
      <${Groups} groups=${groups} values=${chosen} decided=${plan?.decided} options=${options} onValues=${setArgs}
        filter=${filter} onFilter=${setFilter} />
    </section>
    <section class="card" aria-label="The plan">
      <h2>What will happen</h2>
      ${isWaiting && (chosen.train_data_dir || chosen.dataset_name) && html`<${Waiting}>Reading the data<//>`}
      ${plan && html`<${Command} text=${plan.command} />${plan.lines?.length > 0 && html`<pre>${plan.lines.join("\n")}</pre>`}`}
      ${!data.length && !plan && html`<${Empty}>Choose the data.<//>`}
    </section>`;
}
