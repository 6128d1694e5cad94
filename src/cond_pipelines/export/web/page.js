// The page: controls, the image, its film. Names of classes and captions are data: they are set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const controls = $("controls").querySelector("fieldset");
const worker = new Worker("worker.js", { type: "module" });
const MAX_DRAWN = 15;
const FRAMES_IN_STRIP = 8;

say("Loading the model ..."); // in place of what a page shows that was opened as a file, where no script runs

let facts;
let current; // {id, request, frames, seconds}: what is drawn now, or is looked at
let newest = 0;
let playing;

worker.onmessage = ({ data }) => {
  if (data.facts) return start(data.facts);
  if (data.error) return say(`This model cannot draw here: ${data.error}`);
  if (data.id !== current?.id) return; // given up, for a newer one or for one of before
  if (data.isDone) return finish();
  current.frames.push(data.x);
  current.seconds = data.seconds;
  paint($("image"), data.x);
  const { steps } = current.request;
  say(`Drawing: ${steps} ${steps === 1 ? "step" : "steps"} ...`);
};
worker.onerror = (event) => say(`This page cannot draw in this browser: ${event.message ?? "its worker did not start"}`);

// ------------------------------------------------------------------------------------------------- the request

function start(loaded) {
  facts = loaded;
  document.title = facts.name;
  $("name").textContent = facts.name;
  $("formula").textContent = facts.sentence;
  if (facts.classes) {
    $("class").append(...facts.classes.map(({ id, name }) => new Option(name, id)), new Option("any class", ""));
    $("class-row").hidden = false;
  }
  if (facts.tokenizer) {
    $("caption").value = facts.examples[0] ?? "";
    $("caption-row").hidden = false;
  }
  $("steps").max = Math.max(...Object.keys(facts.steps));
  $("steps").value = facts.default_steps;
  const scale = facts.guidance.default;
  [$("guidance").min, $("guidance").max] = [Math.min($("guidance").min, scale), Math.max($("guidance").max, scale)];
  $("guidance").value = scale;
  $("guidance-row").hidden = $("guidance").disabled = !facts.guidance.is_shown;
  controls.disabled = false;
  draw();
}

function request() {
  return {
    label: facts.classes && $("class").value !== "" ? Number($("class").value) : null,
    caption: facts.tokenizer ? $("caption").value : null,
    seed: Number($("seed").value),
    steps: Number($("steps").value),
    guidance: facts.guidance.is_shown ? Number($("guidance").value) : facts.guidance.default,
  };
}

function show({ label, caption, seed, steps, guidance }) {
  if (facts.classes) $("class").value = label ?? "";
  if (facts.tokenizer) $("caption").value = caption;
  [$("seed").value, $("steps").value, $("guidance").value] = [seed, steps, guidance];
}

$("controls").onsubmit = (event) => {
  event.preventDefault();
  draw();
};

$("steps").oninput = () => {
  const { value, max } = $("steps");
  const isKnown = facts.steps[value] || !value || Number(value) > Number(max); // the browser says what is wrong itself
  $("steps").setCustomValidity(isKnown ? "" : `This model cannot draw in ${value} steps`);
};

$("caption").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("controls").requestSubmit();
};

$("surprise").onclick = () => {
  const any = (list) => list[Math.floor(Math.random() * list.length)];
  $("seed").value = Math.floor(Math.random() * 1e6);
  if (facts.classes) $("class").value = any(facts.classes).id;
  if (facts.examples.length) $("caption").value = any(facts.examples);
  if ($("controls").reportValidity()) draw();
};

function draw() {
  stopFilm();
  document.body.dataset.requested = ++newest; // these two for scripts that wait for an image
  current = { id: newest, request: request(), frames: [], seconds: 0 };
  worker.postMessage({ id: newest, request: current.request });
}

// ----------------------------------------------------------------------------------------------------- what is drawn

function finish() {
  remember(current);
  lookAt(current);
  const { steps } = current.request;
  say(`Drawn in ${current.seconds.toFixed(2)} s, ${steps} ${steps === 1 ? "step" : "steps"}.`);
}

/** Show an image that is whole, its film and its line of Python. */
function lookAt(image) {
  stopFilm();
  current = image;
  document.body.dataset.shown = image.id;
  const { frames } = image;
  const last = frames.length - 1;
  for (const name of ["film", "python", "drawn"]) $(`${name}-section`).hidden = false;
  $("film").max = last;
  goTo(last);
  const count = Math.min(FRAMES_IN_STRIP, frames.length);
  const chosen = Array.from({ length: count }, (_, i) => Math.round((i * last) / Math.max(count - 1, 1)));
  $("strip").replaceChildren(...chosen.map((index) => {
    const canvas = paint(document.createElement("canvas"), frames[index]);
    canvas.onclick = () => [stopFilm(), goTo(index)];
    return canvas;
  }));
  $("image").setAttribute("aria-label", inWords(image.request));
  $("python").textContent = inPython(image.request);
}

/** Add it to the images drawn before, the newest first. */
function remember(image) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = inWords(image.request);
  button.setAttribute("aria-label", `Show again: ${inWords(image.request)}`);
  button.append(paint(document.createElement("canvas"), image.frames.at(-1)));
  button.onclick = () => {
    show(image.request);
    lookAt(image);
    say(`${inWords(image.request)}.`);
  };
  const item = document.createElement("li");
  item.append(button);
  $("drawn").prepend(item);
  while ($("drawn").children.length > MAX_DRAWN) $("drawn").lastChild.remove();
}

function goTo(index) {
  $("film").value = index;
  const last = current.frames.length - 1;
  const where = index === 0 ? "noise" : index === last ? "the image" : `step ${index} of ${last}`;
  $("film").setAttribute("aria-valuetext", where);
  paint($("image"), current.frames[index]);
}

$("film").oninput = () => {
  stopFilm();
  goTo(Number($("film").value));
};

$("play").onclick = () => {
  if (playing) return stopFilm();
  const { frames } = current;
  let index = 0;
  $("play").textContent = "Stop";
  playing = setInterval(() => {
    goTo(index++);
    if (index === frames.length) stopFilm();
  }, Math.max(60, 2000 / frames.length));
};

function stopFilm() {
  clearInterval(playing);
  playing = undefined;
  $("play").textContent = "Play the film";
}

/** x_t in [-1, 1] to the pixels of a canvas: gray, RGB or RGBA. Returns the canvas. */
function paint(canvas, x) {
  const [channels, height, width] = facts.sample_shape;
  const pixels = new ImageData(width, height); // its array clamps to 0 .. 255 and rounds to even, as NumPy does
  const at = (channel, i) => (x[channel * height * width + i] / 2 + 0.5) * 255;
  for (let i = 0; i < height * width; i++) {
    const colour = channels === 1 ? [at(0, i), at(0, i), at(0, i)] : [at(0, i), at(1, i), at(2, i)];
    pixels.data.set([...colour, channels === 4 ? at(3, i) : 255], 4 * i);
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// --------------------------------------------------------------------------------------------------------- in words

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

function inWords({ label, caption, seed, steps }) {
  const name = facts.classes?.find(({ id }) => id === label)?.name;
  return [name ?? (caption || "any image"), `seed ${seed}`, `${steps} steps`].join(", ");
}

function inPython({ label, caption, seed, steps, guidance }) {
  const named = facts.classes?.find(({ id }) => id === label)?.label; // the name, or the id where it has none
  const condition = facts.classes ? [named === undefined ? "[None]" : `[${JSON.stringify(named)}]`] : [];
  if (facts.tokenizer) condition.push(JSON.stringify(caption));
  const scale = facts.guidance.is_shown ? [`guidance_scale=${guidance}`] : [];
  const others = [`num_inference_steps=${steps}`, ...scale, `generator=${seed}`];
  return `pipe = ConditionalPipeline.from_pretrained(${JSON.stringify(facts.source)})
image = pipe(${[...condition, ...others].join(", ")}).images[0]`;
}
