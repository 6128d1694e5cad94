// Draws in a thread of its own, so that the page answers meanwhile. A newer request ends the one before.

import { loadModel, sample } from "./sampler.js";

const loaded = loadModel();
let newest = 0;

loaded.then(
  ({ facts }) => postMessage({ facts }),
  (error) => postMessage({ error: String(error?.message ?? error) }),
);

onmessage = async ({ data: { id, request } }) => {
  newest = id;
  try {
    const model = await loaded;
    const begin = performance.now();
    for await (const x of sample(model, request)) {
      postMessage({ id, x, seconds: (performance.now() - begin) / 1000 });
      await new Promise((resume) => setTimeout(resume)); // a message may have come
      if (newest !== id) return;
    }
    postMessage({ id, isDone: true });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
};
