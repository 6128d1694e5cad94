// View 4: draw with one or two models from the same noise; from an image, in a part of it, between two conditions.

import { Act, Bars, Check, Choice, Empty, Field, NumberField, PathChoice, Problem, TextField, Waiting } from "./parts.js";
import { api, html, linkTo, nameOf, notify, query, short, useAnswer, useEffect, useKept, useRef, useState, useStudio } from "./parts.js";
import { usableModels } from "./share.js";

const MODES = [["noise", "from noise"], ["image", "from an image"], ["part", "in a part of an image"], ["between", "between two conditions"]];
const [MOST_SIDE_PX, MOST_IMAGES] = [1024, 16];

/** All that can draw: models, finished runs, and the newest checkpoint of runs that go on. */
function drawable(studio) {
  const unfinished = studio.runs.filter((run) => !run.has_model && run.checkpoints.length);
  const newest = ({ path, name, checkpoints }) => ({ path: `${path}/checkpoint-${checkpoints.at(-1)}`, name: `${name}, step ${checkpoints.at(-1)}` });
  return [...usableModels(studio), ...unfinished.map(newest)];
}

export default function Play({ here }) {
  const models = drawable(useStudio());
  const [left, setLeft] = useState(here.paths[0]);
  const [right, setRight] = useState(here.paths[1] ?? "");
  const known = (path) => models.find((model) => model.path === path || model.path.startsWith(`${path}/checkpoint-`))?.path;
  const first = known(left) ?? models[0]?.path;
  if (!first) return html`<${Empty}>No model and no checkpoint yet. <a href=${linkTo("run", { new: 1 })}>Start a run</a><//>`;
  return html`<${Table} models=${models} paths=${[first, right && known(right)].filter(Boolean)} setLeft=${setLeft} setRight=${setRight} />`;
}

function Table({ models, paths, setLeft, setRight }) {
  const [model, error] = useAnswer(`model?${query({ path: paths[0] })}`);
  const [other, otherError] = useAnswer(paths[1] && `model?${query({ path: paths[1] })}`);
  const [wish, setWish] = useKept("wish", { mode: "noise", seed: 0, count: 4, film: false, strength: 0.6 });
  const [image, setImage] = useState(null);
  const mask = useRef(null);
  const [results, setResults] = useState({});
  const set = (name) => (value) => setWish((all) => ({ ...all, [name]: value }));
  const draw = async () => {
    setResults({});
    for (const [i, path] of paths.entries()) {
      const result = await drawn(path, [model, other][i], wish, isOther(model, other) ? i : 0, image, mask.current?.()).catch((problem) => ({ error: problem }));
      setResults((all) => ({ ...all, [path]: result }));
    }
  };
  const hasImage = wish.mode === "image" || wish.mode === "part";
  return html`<div class="split">
    <form class="card" aria-label="What to draw" onSubmit=${(event) => event.preventDefault()}>
      <${PathChoice} label="Model" items=${models} value=${paths[0]} onValue=${setLeft} />
      <${PathChoice} label="Second model" items=${models} value=${paths[1] ?? ""} none="no other model" onValue=${setRight} />
      <${Choice} label="How" options=${MODES} value=${wish.mode} onValue=${set("mode")} />
      <${Problem} error=${error ?? otherError} />
      ${model && html`<${Conditions} model=${model} other=${other} wish=${wish} set=${set} />
        <${Sampling} model=${model} wish=${wish} set=${set} />`}
      ${hasImage && html`<${NumberField} label="Strength" help="0: the image stays; 1: all of it is drawn anew."
        min="0" max="1" step="0.01" value=${wish.strength} onValue=${set("strength")} />
        <${ImageInput} label="Image" onImage=${setImage} />
        ${image && html`<${Brush} key=${image} image=${image} hasMask=${wish.mode === "part"} reader=${mask} />`}`}
      <${Check} label="keep the film of each" value=${wish.film} onValue=${set("film")} />
      <${Act} run=${draw} isMain isOff=${!model || (hasImage && !image)}>Draw<//>
    </form>
    <div>
      <div class="halves">
        ${paths.map((path, i) => html`<${Side} key=${path} path=${path} model=${[model, other][i]}
          result=${results[path]} wish=${wish} setImage=${(url) => (setImage(url), set("mode")("image"))} />`)}
      </div>
      ${model?.classes.length > 0 && html`<${Classify} path=${paths[0]} />`}
    </div>
  </div>`;
}

// ----------------------------------------------------------------------------------------------- what is wished for
const hasVectors = (model) => (model.embedding_dim ?? null) !== null;
const isFree = (model) => !model.classes.length && !model.examples.length && !hasVectors(model) && model.setting === "none";

/** What the field of a condition holds: what was chosen, where this model knows it. "" is any image. */
function chosenOf(model, text) {
  const isKnown = text === "" || (text !== undefined && (!model.classes.length || model.classes.includes(text)));
  return isFree(model) ? "" : isKnown ? text : String(model.classes[0] ?? model.examples[0] ?? "");
}

/** A line of text as a condition: of a vector its numbers, in brackets or not; nothing is any image. */
export const conditionOf = (model, text) =>
  !text.trim() ? null : hasVectors(model) ? (text.match(/[^\s,[\]]+/g) ?? []).map(Number) : text.trim();

/** Whether the second model has a field of its own. */
const isOther = (model, other) => model && other && (other.setting !== model.setting || String(other.classes) !== String(model.classes));

function bodyOf(path, model, wish, side, image, mask) {
  const { mode, seed, count, film, strength, num_inference_steps: steps, guidance_scale: scale, scheduler } = wish;
  const sampling = { num_inference_steps: steps ?? undefined, guidance_scale: scale ?? undefined, scheduler: scheduler || undefined };
  const text = (name) => conditionOf(model, chosenOf(model, wish[`${name}${side}`]));
  if (mode === "between") return { model: path, first: text("first"), second: text("second"), num_steps: 8, seed: seed ?? 0, ...sampling };
  const number = Math.min(MOST_IMAGES, Math.max(1, count ?? 1));
  const body = { model: path, conditions: Array(number).fill(text("first")), seeds: Array.from({ length: number }, (_, i) => (seed ?? 0) + i), film, ...sampling };
  return mode === "noise" ? body : { ...body, image, strength, mask: mode === "part" ? mask : undefined };
}

async function drawn(path, known, wish, ...others) {
  const model = known ?? (await api(`model?${query({ path })}`)); // Draw may be pressed before it is read
  return api(wish.mode === "between" ? "interpolate" : "draw", bodyOf(path, model, wish, ...others));
}

/** The condition by setting: a menu of classes, a prompt, a vector, or nothing. Two settings have one each. */
function Conditions({ model, other, wish, set }) {
  const sides = [model, ...(isOther(model, other) ? [other] : [])];
  const names = wish.mode === "between" ? [["first", "From"], ["second", "To"]] : [["first", ""]];
  return sides.flatMap((one, side) =>
    names.map(([name, word]) => {
      if (isFree(one)) return null;
      const [key, suffix] = [`${name}${side}`, side ? " of the other" : ""];
      const value = chosenOf(one, wish[key]);
      const label = (what) => (word ? `${word} ${what.toLowerCase()}${suffix}` : `${what}${suffix}`);
      if (one.classes.length) {
        return html`<${Choice} key=${key} label=${label("Class")} value=${value}
          options=${[...one.classes, ["", "any class"]]} onValue=${set(key)} />`;
      }
      return html`<${TextField} key=${key} label=${label(hasVectors(one) ? "Vector" : "Prompt")} value=${value} onValue=${set(key)}
        help=${hasVectors(one) ? `${one.embedding_dim} numbers. Empty: any image.` : "Empty: any image."} />`;
    }),
  );
}

function Sampling({ model, wish, set }) {
  const schedulers = [["", `${model.scheduler} (default)`], ...model.schedulers.filter((name) => name !== model.scheduler)];
  return html`<div class="fields small">
      <${NumberField} label="Seed" value=${wish.seed} min="0" max="4294967295" step="1" onValue=${set("seed")} />
      ${wish.mode !== "between" && html`<${NumberField} label="Images" value=${wish.count} min="1" max=${MOST_IMAGES}
        step="1" onValue=${set("count")} />`}
      <${NumberField} label="Steps" value=${wish.num_inference_steps} placeholder=${model.num_inference_steps} min="1"
        max="1000" step="1" onValue=${set("num_inference_steps")} />
      <${NumberField} label="Guidance" value=${wish.guidance_scale} placeholder=${short(model.guidance_scale)}
        onValue=${set("guidance_scale")} />
    </div>
    <${Choice} label="Scheduler" value=${wish.scheduler ?? ""} options=${schedulers} onValue=${set("scheduler")} />`;
}

/** A file as a data URL, no side longer than MOST_SIDE_PX: an upload has a bound. */
async function readImage(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MOST_SIDE_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(scale * side)));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

function ImageInput({ label, onImage }) {
  const [isOver, setIsOver] = useState(false);
  const take = async (file) => {
    if (!file) return;
    const url = await readImage(file).catch(() => notify(`${file.name} is no image that a browser can read`, "bad"));
    if (url) onImage(url);
  };
  const over = (value) => (event) => (event.preventDefault(), setIsOver(value));
  return html`<div class="drop ${isOver ? "over" : ""}" onDragOver=${over(true)} onDragLeave=${over(false)}
    onDrop=${(event) => (over(false)(event), take(event.dataTransfer.files[0]))}>
    <${Field} label=${label} help="Or drop one here.">
      ${(tied) => html`<input type="file" accept="image/*" onChange=${(event) => take(event.target.files[0])} ...${tied} />`}
    <//>
  </div>`;
}

/** The image, and a brush for the part that is drawn anew. reader.current() gives the mask: white where it is. */
function Brush({ image, hasMask, reader }) {
  const canvas = useRef();
  const [size, setSize] = useState(12);
  const last = useRef(null);
  useEffect(() => {
    reader.current = () => maskOf(canvas.current);
    return () => (reader.current = null);
  }, []);
  const point = ({ clientX, clientY }) => {
    const { left, top, width, height } = canvas.current.getBoundingClientRect();
    return [((clientX - left) / width) * canvas.current.width, ((clientY - top) / height) * canvas.current.height];
  };
  const stroke = (event) => {
    if (!event.buttons) return;
    const context = canvas.current.getContext("2d");
    const to = point(event);
    context.strokeStyle = "#ff3b6b";
    context.lineCap = "round";
    context.lineWidth = (size / 100) * canvas.current.width;
    context.beginPath();
    context.moveTo(...(last.current ?? to));
    context.lineTo(to[0], to[1] + 0.01);
    context.stroke();
    last.current = to;
  };
  const start = (event) => (canvas.current.setPointerCapture(event.pointerId), (last.current = null), stroke(event));
  const clear = () => canvas.current.getContext("2d").clearRect(0, 0, canvas.current.width, canvas.current.height);
  return html`<div class="layers"><img class="big pixels" src=${image} alt="The image to start from" />
      ${hasMask && html`<canvas ref=${canvas} width="512" height="512" aria-label="Paint what is drawn anew"
        role="img" onPointerDown=${start} onPointerMove=${stroke}></canvas>`}
    </div>
    ${hasMask && html`<${NumberField} label="Brush, % of the width" value=${size} min="1" max="60" onValue=${(value) => setSize(value ?? 12)} />
      <div class="row"><${Act} run=${clear}>Clear the brush<//></div>`}`;
}

function maskOf(canvas) {
  if (!canvas) return undefined;
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, copy.width, copy.height);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#000";
  context.fillRect(0, 0, copy.width, copy.height);
  return copy.toDataURL("image/png");
}

// ---------------------------------------------------------------------------------------------------- what came out
function Side({ path, model, result, setImage }) {
  const [chosen, setChosen] = useState(0);
  const images = result?.images ?? [];
  const at = Math.min(chosen, images.length - 1);
  return html`<section class="card side" aria-label=${`Images of ${nameOf(path)}`}>
    <h2>${nameOf(path)}</h2>
    ${model && html`<p class="soft">${model.formula}, ${model.width} × ${model.height} px${result?.sec ? `, drawn in ${short(result.sec, 2)} s` : ""}</p>`}
    <${Problem} error=${result?.error} />
    ${!result && html`<p class="soft">Press Draw.</p>`}
    ${images.length > 0 && html`<div class="tiles">
        ${images.map((url, i) => html`<button type="button" class="plain tile-button" key=${url}
          aria-pressed=${i === at} onClick=${() => setChosen(i)}>
          <img class="pixels" src=${url} alt=${`Image ${i + 1}`} /></button>`)}
      </div>
      <${One} key=${images[at]} path=${path} url=${images[at]} film=${result.films?.[at]} setImage=${setImage} />`}
  </section>`;
}

/** One image: its film from noise, its nearest training images, and as a start for others. */
function One({ path, url, film, setImage }) {
  const frames = [...(film ?? []).filter((frame) => frame !== url), url];
  const [at, setAt] = useState(frames.length - 1);
  const [nearest, setNearest] = useState();
  const find = async () => setNearest((await api("nearest", { model: path, image: url })).items);
  return html`<figure><img class="big pixels" src=${frames[at]} alt="The chosen image in large" />
      ${frames.length > 1 && html`<input type="range" aria-label="From noise to image" min="0" max=${frames.length - 1} value=${at}
        aria-valuetext=${`step ${at + 1} of ${frames.length}`} onInput=${(event) => setAt(Number(event.target.value))} />`}
    </figure>
    <div class="row"><${Act} run=${find}>Nearest training images<//><${Act} run=${() => setImage(url)}>Start from this image<//></div>
    ${nearest && html`<div class="tiles nearest">
      ${nearest.map(({ image, distance, name, condition }) => html`<figure key=${image}>
        <img class="pixels" src=${image} alt=${name ?? "A training image"} /><figcaption
          title=${name}>${short(distance, 3)} ${condition ?? name ?? ""}</figcaption></figure>`)}
    </div>`}`;
}

/** p(y|x) of an image. */
function Classify({ path }) {
  const [image, setImage] = useState(null);
  const [answer, setAnswer] = useState();
  const read = async () => setAnswer((await api("classify", { model: path, image })).probabilities);
  return html`<section class="card" aria-label="p(y|x) of an image">
    <h2>Which class is it? <small>p(y|x)</small></h2>
    <${ImageInput} label="Image to classify" onImage=${(url) => (setImage(url), setAnswer())} />
    ${image && html`<div class="row"><img class="small-image pixels" src=${image}
      alt="The image to classify" /><${Act} run=${read}>Classify<//></div>`}
    ${answer && html`<${Bars} rows=${answer.map(({ name, p }) => [name, +p.toPrecision(3)])} />`}
  </section>`;
}
