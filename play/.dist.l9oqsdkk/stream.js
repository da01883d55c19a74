// The player of chapter 72b in JavaScript: everything that a stream remembers, around eight graphs that remember nothing.

// Normal noise that belongs to (seed, block, step): mulberry32 and Box-Muller. The test computes the same in Python.
export function noise(n, seed, block, step) {
  let a = (Math.imul(seed, 0x9E3779B1) ^ Math.imul(block + 1, 0x85EBCA77) ^ Math.imul(step + 1, 0xC2B2AE3D)) >>> 0;
  const next = () => {
    a = (a + 0x6D2B79F5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const out = new Float32Array(n);
  for (let i = 0; i < n; i += 2) {
    const r = Math.sqrt(-2 * Math.log(1 - next())), w = 2 * Math.PI * next();
    out[i] = r * Math.cos(w);
    if (i + 1 < n) out[i + 1] = r * Math.sin(w);
  }
  return out;
}

// UTF-8 bytes + 1, filled up with 0; a character that does not fit whole is dropped.
export function tokenize(text, length) {
  const rows = new BigInt64Array(length), encoder = new TextEncoder();
  let n = 0;
  for (const c of text.replace(/\s+/g, ' ').trim()) {
    const bytes = encoder.encode(c);
    if (n + bytes.length > length) break;
    for (const b of bytes) rows[n++] = BigInt(b + 1);
  }
  return rows;
}

// Pixels (RGBA, size x size) as the encoder wants them: (1, 3, 1, H, W) from -1 to 1.
export function picture(rgba, h, w) {
  const out = new Float32Array(3 * h * w);
  for (let i = 0; i < h * w; i++) for (let c = 0; c < 3; c++) out[c * h * w + i] = rgba[4 * i + c] / 127.5 - 1;
  return out;
}

// Video (1, 3, T, H, W) about -1 to 1 as T pictures of RGBA bytes.
export function pixels(video, [, , t, h, w]) {
  const out = new Uint8ClampedArray(4 * t * h * w), plane = t * h * w;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) out[4 * i + c] = (video[c * plane + i] + 1) * 127.5;   // a clamped array rounds and clamps
    out[4 * i + 3] = 255;
  }
  return out;
}

// One window of remembered keys and values, with the sink in front, as one array (layers, 2, tokens, heads * depth). A full window is a ring:
// a new block overwrites the oldest frames in place. Attention is a sum, so only `places` must tell the truth.
class Window {
  constructor(model, frames) {
    this.rows = model.layers * 2;
    this.width = model.heads * model.head_dim;
    this.frame = model.grid[0] * model.grid[1];
    this.most = frames;
    this.at = [];                                        // for each slot the frame that it holds
    this.data = new Float32Array(this.rows * this.frame * this.width);
  }
  get tokens() { return (1 + this.at.length) * this.frame; }
  copy() { const w = Object.assign(Object.create(Window.prototype), this); w.at = [...this.at]; w.data = this.data.slice(); return w; }
  write(from, slot, frames, first) {                     // `frames` latent frames of a tensor (rows, n, width), from frame `first` on
    const n = this.frame * this.width, size = from.length / this.rows, whole = this.tokens * this.width;
    for (let r = 0; r < this.rows; r++) this.data.set(from.subarray(r * size + first * n, r * size + (first + frames) * n), r * whole + slot * n);
  }
  sink(kv) { this.write(kv, 0, 1, 0); }
  grow(frames) {
    const old = this.data, n = this.frame * this.width, before = this.tokens * this.width;
    this.data = new Float32Array(this.rows * (before + frames * n));
    for (let r = 0; r < this.rows; r++) this.data.set(old.subarray(r * before, (r + 1) * before), r * (before + frames * n));
  }
  keep(kv, frames, elapsed) {
    const more = Math.min(frames, this.most - this.at.length);
    if (more > 0) { this.grow(more); for (let i = 0; i < more; i++) this.at.push(-Infinity); }
    for (let f = Math.max(0, frames - this.most); f < frames; f++) {
      const slot = this.at.indexOf(Math.min(...this.at));
      this.at[slot] = elapsed + f;
      this.write(kv, 1 + slot, 1, f);
    }
  }
  places([height, width], sink, elapsed) {               // (tokens, 3) float64: frame, row, column, relative to the block
    const out = new Float64Array(this.tokens * 3);
    let i = 0;
    for (const f of [sink, ...this.at.map((a) => a - elapsed)])
      for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) { out[i++] = f; out[i++] = y; out[i++] = x; }
    return out;
  }
}

export class Stream {
  constructor(ort, sessions, model) { Object.assign(this, { ort, sessions, model, config: { ...model.sampler } }); }

  f32(data, dims) { return new this.ort.Tensor('float32', data, dims); }

  async run(graph, ...inputs) {                          // outputs in their order
    const s = this.sessions[graph];
    const out = await s.run(Object.fromEntries(s.inputNames.map((name, i) => [name, inputs[i]])));
    return s.outputNames.map((name) => out[name]);
  }

  // Begin a stream: a latent (Float32Array) or RGBA pixels of the model's size, a sentence, a seed.
  async start({ latent, rgba, text = '', seed = 0, noises = null }) {
    const m = this.model, [c, h, w] = m.latent, [height, width] = m.size;
    this.latent = latent ? this.f32(latent, [1, c, 1, h, w])
      : (await this.run('encode', this.f32(picture(rgba, height, width), [1, 3, 1, height, width])))[0];
    this.state = await this.run('warm', this.latent);
    Object.assign(this, { seed, noises, number: 0, elapsed: 0, first: null, past: null, windows: null });
    this.held = this.f32(new Float32Array(192), [1, 192]);
    await this.say(text);
  }

  async say(text) {
    [this.text] = await this.run('text', new this.ort.Tensor('int64', tokenize(text, this.model.text_len), [1, this.model.text_len]));
    await this.setSink(this.sinkNow || this.latent);
  }

  async setSink(latent) {
    this.sinkNow = latent;
    [this.sinkKv, this.pose] = await this.run('sink', latent, this.text);
    const n = this.config.policy === 'timestep' ? this.config.levels.length - 1 : 1;
    if (!this.windows) this.windows = Array.from({ length: n }, () => new Window(this.model, this.config.window_frames));
    for (const w of this.windows) w.sink(this.sinkKv.data);
  }

  // Other settings from the next block on: policy (timestep, clean, fixed), rolling, refresh_at.
  async change(settings) {
    const own = this.config.policy === 'timestep';
    Object.assign(this.config, settings);
    const now = this.config.policy === 'timestep';
    if (own && !now) this.windows = [this.windows.at(-1)];
    if (!own && now) this.windows = Array.from({ length: this.config.levels.length - 1 }, () => this.windows[0].copy());
    const { refresh_at: at } = this.config;
    await this.setSink(at !== null && this.first && this.number > at ? this.first : this.latent);
  }

  async look(x, sigma, k) {
    const c = this.config, m = this.model, w = this.windows[k];
    const places = w.places(m.grid, c.sink_distance - (c.rolling ? 0 : this.elapsed), this.elapsed);
    const past = this.f32(w.data, [m.layers, 2, 1, w.tokens, m.heads, m.head_dim]);
    const positions = new this.ort.Tensor('float64', places, [w.tokens, 3]);
    return this.run('step', x, this.f32(Float32Array.of(sigma), [1]), this.text, ...this.sound, this.pose, past, positions);
  }

  draw(n, step) { return this.noises ? this.noises(this.number, step, n) : noise(n, this.seed, this.number, step); }

  async denoise(frames) {
    const { levels, policy, solver, fixed_level } = this.config, [c, h, w] = this.model.latent, dims = [1, c, frames, h, w];
    const n = c * frames * h * w, own = policy === 'timestep';
    let x = this.draw(n, 0);
    for (let k = 0; k + 1 < levels.length; k++) {
      const [v, kv] = await this.look(this.f32(x, dims), levels[k], own ? k : 0), y = new Float32Array(n), after = levels[k + 1];
      if (own) this.windows[k].keep(kv.data, frames, this.elapsed);
      if (solver === 'euler' || after === 0) for (let i = 0; i < n; i++) y[i] = x[i] + (after - levels[k]) * v.data[i];
      else {
        const e = this.draw(n, k + 1);
        for (let i = 0; i < n; i++) y[i] = (1 - after) * (x[i] - levels[k] * v.data[i]) + after * e[i];
      }
      x = y;
    }
    if (!own) await this.remember(x, dims, policy === 'fixed' ? fixed_level : 0, frames);
    return this.f32(x, dims);
  }

  // All policies but `timestep` look at the finished block once more and keep what was seen.
  async remember(x, dims, level, frames) {
    const e = level ? this.draw(x.length, this.config.levels.length) : null;
    const seen = level ? x.map((value, i) => (1 - level) * value + level * e[i]) : x;
    const [, kv] = await this.look(this.f32(seen, dims), level, 0);
    this.windows[0].keep(kv.data, frames, this.elapsed);
  }

  // Samples (2560 per latent frame) to { rgba, count }: the next pictures of the film.
  async block(samples) {
    const frames = samples.length / 2560, { audio_history: history, audio_dim: width } = this.model, c = this.config;
    if (!Number.isInteger(frames) || !frames) throw new Error(`${samples.length} samples are not whole latent frames: give a multiple of 2560`);
    if (c.refresh_at === this.number && this.first) await this.setSink(this.first);
    const [rows, held] = await this.run('features', this.f32(samples, [1, samples.length]), this.held);
    const heard = new Float32Array((history + 4 * frames) * width);
    if (this.past) heard.set(this.past); else for (let i = 0; i < history; i++) heard.set(rows.data.subarray(0, width), i * width);
    heard.set(rows.data, history * width);
    Object.assign(this, { held, past: heard.slice(-history * width) });
    this.sound = await this.run('hear', this.f32(heard, [1, history + 4 * frames, width]));
    const x = await this.denoise(frames), [video, ...state] = await this.run('decode', x, ...this.state);
    if (!this.first) this.first = this.firstOf(x, frames);
    Object.assign(this, { state, number: this.number + 1, elapsed: this.elapsed + frames });
    return { rgba: pixels(video.data, video.dims), count: 4 * frames };
  }

  firstOf(x, frames) {
    const [c, h, w] = this.model.latent, out = new Float32Array(c * h * w);
    for (let i = 0; i < c; i++) out.set(x.data.subarray(i * frames * h * w, (i * frames + 1) * h * w), i * h * w);
    return this.f32(out, [1, c, 1, h, w]);
  }
}
