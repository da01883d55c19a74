// Loads the graphs and makes blocks, away from the page, so that the picture never waits for a sum.
import * as ort from './ort/ort.wasm.min.mjs';
import { Stream } from './stream.js';

let stream = null;
const got = new Map();                                   // sha256 -> bytes: what two presets share is fetched once
let bytes = 0;

async function fetched(url, sha) {
  if (sha && got.has(sha)) return got.get(sha);
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}. Is the page complete? make play`);
  const parts = [], reader = answer.body.getReader();
  for (let size = 0; ;) {
    const { done, value } = await reader.read();
    if (done) { const all = new Uint8Array(size); let at = 0; for (const p of parts) { all.set(p, at); at += p.length; } if (sha) got.set(sha, all); return all; }
    parts.push(value); size += value.length; bytes += value.length;
    postMessage({ kind: 'loading', bytes });
  }
}

async function unpacked(url) {
  const packed = await fetched(url);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
}

async function prepare(threads) {
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href;
  ort.env.wasm.wasmBinary = await unpacked(new URL('./ort/ort-wasm-simd-threaded.wasm.gz', import.meta.url));
  ort.env.logLevel = 'error';
}

async function load({ preset, threads }) {
  if (!ort.env.wasm.wasmBinary) await prepare(threads);
  const base = new URL(`./models/${preset}/`, import.meta.url), model = JSON.parse(new TextDecoder().decode(await fetched(new URL('model.json', base))));
  const sessions = {}, file = (name) => fetched(new URL(name, base), model.files[name].sha256);
  const shared = { dit: await file('dit.weights'), vae: await file('vae.weights') };
  for (const [name, which] of Object.entries({ features: '', text: 'dit', sink: 'dit', hear: 'dit', step: 'dit', encode: 'vae', warm: 'vae', decode: 'vae' })) {
    const externalData = which ? [{ path: `${which}.weights`, data: shared[which] }] : [];
    sessions[name] = await ort.InferenceSession.create(await file(`${name}.onnx`), { executionProviders: ['wasm'], externalData, logSeverityLevel: 3 });
  }
  if (stream) for (const s of Object.values(stream.sessions)) await s.release();
  stream = new Stream(ort, sessions, model);
  return { model, bytes, fps: await speed(model), threads: ort.env.wasm.numThreads };
}

// Pictures a second of this computer: the fastest of four blocks of silence with a full window.
async function speed({ size: [h, w] }) {
  await stream.start({ rgba: new Uint8ClampedArray(4 * h * w) });
  let best = Infinity;
  for (let i = 0; i < 5; i++) {
    const t = performance.now();
    await stream.block(new Float32Array(7680));
    if (i > 1) best = Math.min(best, performance.now() - t);
  }
  return 12000 / best;
}

const orders = {
  load,
  start: async (m) => { stream.sinkNow = null; if (m.noises) { const all = m.noises; m.noises = (b, k) => all[b][k]; } await stream.start(m); },
  change: (m) => stream.change(m.settings),
  say: (m) => stream.say(m.text),
  block: async (m) => {
    const t = performance.now(), out = await stream.block(m.samples);
    return { ...out, ms: performance.now() - t, epoch: m.epoch };
  },
};

let busy = Promise.resolve();                            // one order after the other
onmessage = ({ data }) => {
  busy = busy.then(async () => {
    try {
      const answer = (await orders[data.kind](data)) || {};
      postMessage({ kind: 'done', id: data.id, answer }, answer.rgba ? [answer.rgba.buffer] : []);
    } catch (e) { postMessage({ kind: 'failed', id: data.id, why: e.message || String(e) }); }
  });
};
