// The page: faces, voice, switches, and the clock that pictures and sound share.
import { chooser, cut, opened } from './crop.js';

const $ = (id) => document.getElementById(id);
const SINKS = { plain: { rolling: false, refresh_at: null }, rolling: { rolling: true, refresh_at: null }, aas: { rolling: false, refresh_at: 1 }, full: { rolling: true, refresh_at: 1 } };
const RATE = 16000, AHEAD = .9, AHEAD_LIVE = .25;
const state = { ready: false, running: false, shown: 0, late: 0, blocks: 0, fps: 0, threads: 0, bytes: 0, isolated: crossOriginIsolated, preset: '', problems: [], ms: [] };
window.__play = state;

const worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
const waiting = new Map();
let ids = 0;
const ask = (kind, more = {}, give = []) => new Promise((done, failed) => { waiting.set(++ids, { done, failed }); worker.postMessage({ kind, id: ids, ...more }, give); });
state.ask = ask;
worker.onmessage = ({ data }) => {
  if (data.kind === 'loading') { state.bytes = data.bytes; $('bytes').textContent = `${(data.bytes / 1e6).toFixed(1)} MB`; return; }
  const { done, failed } = waiting.get(data.id); waiting.delete(data.id);
  if (data.kind === 'failed') failed(new Error(data.why)); else done(data.answer);
};
worker.onerror = (e) => note(`This browser can't run the page (${e.message || 'the worker did not start'}). A current Chrome, Edge, Firefox or Safari can.`, true);

function note(text, bad = false) { $('note').textContent = text; $('note').classList.toggle('bad', bad); if (bad) state.problems.push(text); }

// --- the model: pico first; nano where four times the work is still fast enough
let model = null, faces = [], face = null, chosen = { name: 'ada' };
async function load(preset) {
  const threads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const use = async (name) => { note(`Fetching and preparing ${name} …`); const m = await ask('load', { preset: name, threads }); model = m.model; Object.assign(state, { fps: m.fps, threads: m.threads, bytes: m.bytes, preset: name }); };
  if (preset !== 'auto') await use(preset);
  else { await use('pico'); if (state.fps > 110) { await use('nano'); if (state.fps < 30) await use('pico'); } }
  const { latents } = await (await fetch(`models/${state.preset}/faces.json`)).json();
  faces = latents;
  [$('face').width, $('face').height] = [model.size[1], model.size[0]];
  $('fps').textContent = state.fps.toFixed(0);
  $('threads').textContent = crossOriginIsolated ? state.threads : '1: this server does not isolate the page';
}

const numbers = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
function beginning() {
  const how = { text: $('text').value, seed: 0 };
  return face ? { ...how, rgba: cut(face.image, face.square, model.size[0]) } : { ...how, latent: numbers(faces[chosen.name]) };
}

// --- sound and picture on one clock
let audio = null, epoch = 0, next = 0, sound = [], live = false, film = [], sources = [], making = false, stepping = 0;
const queued = () => sound.reduce((n, s) => n + s.length, 0);
function take(n) {                                       // the next samples; silence where there are none
  const out = new Float32Array(n);
  for (let at = 0; at < n && sound.length;) {
    const piece = sound[0].subarray(0, n - at);
    out.set(piece, at); at += piece.length;
    if (piece.length === sound[0].length) sound.shift(); else sound[0] = sound[0].subarray(piece.length);
  }
  return out;
}

async function pump() {
  if (!state.running || making) return;
  const n = 2560 * Number($('frames').value), lead = next - audio.currentTime;
  if (lead > (live ? AHEAD_LIVE : AHEAD) || live && queued() < n && lead > .02) return;
  making = true;
  const mine = epoch, samples = take(n);
  try {
    const out = await ask('block', { samples: samples.slice(), epoch: mine });
    if (mine === epoch && state.running) play(out, samples);
  } catch (e) { note(e.message, true); stop(); } finally { making = false; }
}

function play({ rgba, count, ms }, samples) {
  state.blocks++; state.ms.push(ms); if (state.ms.length > 400) state.ms.shift();
  $('ms').textContent = `${ms.toFixed(0)} ms`;
  const now = audio.currentTime;
  if (next < now + .02) { if (state.blocks > 1) state.late++; next = now + .06; }
  if (!live) {                                           // the microphone's own voice is not played back
    const buffer = audio.createBuffer(1, samples.length, RATE), source = audio.createBufferSource();
    buffer.copyToChannel(samples, 0); source.buffer = buffer; source.connect(audio.destination); source.start(next);
    sources.push(source); source.onended = () => sources.splice(sources.indexOf(source), 1);
  }
  const [h, w] = model.size, size = 4 * h * w;
  for (let i = 0; i < count; i++) film.push({ at: next + i / 25, image: new ImageData(new Uint8ClampedArray(rgba.buffer, i * size, size), w, h) });
  next += count / 25;
}

function hush() {                                        // a new utterance replaces the running one
  epoch++; sound = [];
  for (const s of sources.splice(0)) { s.onended = null; s.stop(); }
  film = film.filter((f) => f.at < audio.currentTime + .04);
  next = Math.min(next, audio.currentTime + .06);
}

function show() {
  if (!state.running) return;
  const now = audio.currentTime - (audio.outputLatency || 0);
  let due = null;
  while (film.length && film[0].at <= now) { due = film.shift(); state.shown++; }
  if (due) $('face').getContext('2d').putImageData(due.image, 0, 0);
  if (stepping++ % 15 === 0) { $('lead').textContent = `${Math.max(0, next - audio.currentTime).toFixed(2)} s`; $('late').textContent = state.late; }
  requestAnimationFrame(show);
}
setInterval(() => pump(), 15);

async function start() {
  $('start').disabled = true;
  try {
    audio ||= new AudioContext({ sampleRate: RATE });
    await audio.resume();
    if (!state.ready) { await load($('preset').value); state.ready = true; await settings(); }
    await ask('start', beginning());
    Object.assign(state, { running: true, shown: 0, late: 0, blocks: 0, ms: [] });
    epoch++; film = []; next = audio.currentTime + .1; $('stop').disabled = false;
    note(state.fps < 27 ? `This computer makes ${state.fps.toFixed(0)} pictures a second; 25 are needed, so it will stutter.` : 'It listens. Play the sample, or speak.');
    requestAnimationFrame(show);
  } catch (e) { note(e.message, true); $('start').disabled = false; }
}

function stop() {
  if (audio) hush();
  state.running = false; $('stop').disabled = true; $('start').disabled = false; muted();
  note('Stopped. Start begins anew.'); $('start').focus();
}

const settings = () => ask('change', { settings: { policy: $('policy').value, ...SINKS[$('sink').value] } });
const restart = async () => { if (state.running) { hush(); await ask('start', beginning()); } };

// --- voice
async function sample() {
  if (!state.running) await start();
  if (!state.running) return;
  muted(); hush();
  const wav = await audio.decodeAudioData(await (await fetch('hello.wav')).arrayBuffer());
  sound = [wav.getChannelData(0).slice()];
}
let microphone = null;
function muted() {
  if (microphone) { microphone.getTracks().forEach((t) => t.stop()); microphone = null; }
  live = false; sound = []; $('mic').setAttribute('aria-pressed', 'false'); $('mic').textContent = 'Speak';
}
async function speak() {
  if (microphone) return muted();
  if (!state.running) await start();
  if (!state.running) return;
  try { microphone = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true } }); }
  catch (e) { return note(`No microphone (${e.message || e.name}): allow it in the address bar, or play the sample.`, true); }
  await audio.audioWorklet.addModule('capture.js');
  hush(); live = true;
  const node = new AudioWorkletNode(audio, 'capture');
  node.port.onmessage = ({ data }) => { if (live) { sound.push(data); if (queued() > RATE) sound = [take(queued()).subarray(-RATE / 2)]; } };
  audio.createMediaStreamSource(microphone).connect(node);
  $('mic').setAttribute('aria-pressed', 'true'); $('mic').textContent = 'Stop speaking'; note('Speak: it moves its lips with you.');
}

// --- faces
for (const name of ['ada', 'robo', 'tama', 'ember']) {
  const b = document.createElement('button');
  b.type = 'button'; b.setAttribute('role', 'radio'); b.dataset.name = name; b.innerHTML = `<img src="faces/${name}.png" alt="${name}">`;
  b.onclick = async () => { chosen = { name }; face = null; marked(); await restart(); };
  b.onkeydown = (e) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key], all = [...$('faces').children];
    if (step) { const to = all[(all.indexOf(b) + step + 4) % 4]; to.focus(); to.click(); e.preventDefault(); }
  };
  $('faces').append(b);
}
function marked() {
  for (const b of $('faces').children) { const on = !face && b.dataset.name === chosen.name; b.setAttribute('aria-checked', on); b.tabIndex = on || face ? 0 : -1; }
}
marked();
$('picture').onchange = async ({ target }) => {
  const [file] = target.files;
  if (!file) return;
  try {
    const image = await opened(file);
    chooser($('crop'), image, async (square) => { face = { image, square }; marked(); target.value = ''; note(`${file.name} is the portrait now.`); await restart(); }, () => { target.value = ''; });
  } catch (e) { target.value = ''; note(e.message, true); }
};
$('start').onclick = start; $('stop').onclick = stop; $('say').onclick = sample; $('mic').onclick = speak;
$('text').onchange = () => state.running && ask('say', { text: $('text').value });
$('policy').onchange = $('sink').onchange = () => state.ready && settings();
$('preset').onchange = async () => { const on = state.running; if (on) stop(); state.ready = false; if (on) await start(); };
