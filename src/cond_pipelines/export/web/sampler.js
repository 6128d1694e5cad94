// From a condition and a seed to an image, as the model's own scheduler draws it in Python.

import * as ort from "./ort.wasm.min.mjs";
import { TorchGenerator } from "./noise.js";
import { Tokenizer } from "./tokenizer.js";

ort.env.wasm.numThreads = 1; // more would need HTTP headers that a static page cannot set
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;

/** Load the networks that model.json names. */
export async function loadModel() {
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`model.json: HTTP ${response.status}`);
  const facts = await response.json();
  const networks = {};
  for (const name of Object.keys(facts.networks)) networks[name] = await ort.InferenceSession.create(`${name}.onnx`);
  return { facts, networks, tokenizer: facts.tokenizer && new Tokenizer(facts.tokenizer) };
}

/**
 * Yields x_t, a Float32Array (C * height * width): the noise, then after each evaluation; the last one is the image.
 * @param {{label: ?number, caption: ?string, seed: number, steps: number, guidance: number}} request
 */
export async function* sample(model, request) {
  const { facts } = model;
  const { timesteps, sigmas } = facts.steps[request.steps];
  const condition = await conditionOf(model, request);
  const generator = new TorchGenerator(request.seed);
  const size = facts.sample_shape.reduce((a, b) => a * b);
  let x = generator.normal(size);
  let start, first; // of Heun's step: where it begins, and the slope there
  yield x;
  for (let i = 0; i < timesteps.length; i++) {
    const velocity = await predict(model, x, timesteps[i], condition, request.guidance); // d x / d sigma
    if (facts.method === "stochastic") {
      // A jump to the image, then back to less noise.
      const noise = generator.normal(size);
      x = x.map((_, j) => (1 - sigmas[i + 1]) * (x[j] - sigmas[i] * velocity[j]) + sigmas[i + 1] * noise[j]);
    } else if (facts.method === "heun" && i % 2) {
      const delta = sigmas[i] - sigmas[i - 1];
      x = start.map((_, j) => start[j] + (delta * (first[j] + velocity[j])) / 2);
    } else {
      [start, first] = [x, velocity];
      x = x.map((_, j) => x[j] + (sigmas[i + 1] - sigmas[i]) * velocity[j]);
    }
    yield x;
  }
}

/** What adapter.onnx makes of a request: {cond_tokens, cond_pooled, null_tokens, ...}. */
async function conditionOf({ networks, tokenizer, facts }, { label, caption }) {
  let features = { batch: new ort.Tensor("float32", [0], [1]) };
  if (facts.classes) features = { label: int64([label ?? -1], [1]) };
  if (tokenizer) {
    const ids = tokenizer.encode(caption ?? "");
    const [padded, mask] = ids.length ? [ids, ids.map(() => 1)] : [[facts.tokenizer.pad], [0]];
    const shape = [1, padded.length];
    features = await run(networks.text_encoder, { input_ids: int64(padded, shape), attention_mask: int64(mask, shape) });
  }
  return run(networks.adapter, features);
}

/** The prediction under the condition, with guidance away from the one under none, or from the guide's. */
async function predict({ networks, facts }, x, timestep, condition, guidance) {
  const scalar = (value) => new ort.Tensor("float32", [value], [1]);
  const of = async (network, kind) => {
    const given = { sample: new ort.Tensor("float32", x, [1, ...facts.sample_shape]), timestep: scalar(timestep) };
    given.end_timestep = scalar(facts.method === "stochastic" ? 0 : timestep);
    for (const name of ["tokens", "mask", "pooled"]) given[name] = condition[`${kind}_${name}`];
    return (await run(network, given)).prediction.data;
  };
  const main = await of(networks.unet, "cond");
  if (guidance === 1 || (!networks.guide && hasNoCondition(condition))) return main;
  const weak = networks.guide ? await of(networks.guide, "cond") : await of(networks.unet, "null");
  return main.map((_, j) => weak[j] + guidance * (main[j] - weak[j]));
}

function hasNoCondition(condition) {
  return Object.keys(condition).every((name) => {
    const other = condition[name.replace("cond_", "null_")].data;
    return condition[name].data.every((value, i) => value === other[i]);
  });
}

function run(network, given) {
  return network.run(Object.fromEntries(network.inputNames.map((name) => [name, given[name]])));
}

function int64(values, shape) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
}
