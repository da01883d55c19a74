// The page's half of the player: blocks of pictures and sound come in, and are shown on one clock. See chapter 90.
const RATE = 16000, FPS = 25, CHUNK_MS = 120, SILENT_S = 8;
const el_ = (tag, cls, parent, text) => { const e = document.createElement(tag); if (cls) e.className = cls; if (text) e.textContent = text; parent?.append(e); return e; };
const bytes = (v) => v.buffer.slice(v.byteOffset, v.byteOffset + v.byteLength);
const CAPTURE = `registerProcessor('capture', class extends AudioWorkletProcessor {
  constructor() { super(); this.b = new Int16Array(1920); this.n = 0; }
  process(inputs) { const x = inputs[0][0];
    if (x) for (const v of x) { this.b[this.n++] = Math.max(-1, Math.min(1, v)) * 32767;
      if (this.n === 1920) { this.port.postMessage(this.b.buffer, [this.b.buffer]); this.b = new Int16Array(1920); this.n = 0; } }
    return true; } })`;

function render({ model, el }) {
  const id = Math.random().toString(36).slice(2, 8);
  const root = el_('div', 'lav', el); root.dataset.view = id;
  const stage = el_('div', 'lav-stage', root);
  const canvas = el_('canvas', 'lav-picture', stage), g = canvas.getContext('2d', { alpha: false });
  canvas.setAttribute('role', 'img'); canvas.setAttribute('aria-label', 'the avatar');
  const note = el_('div', 'lav-note', root); note.setAttribute('role', 'status'); note.setAttribute('aria-live', 'polite');
  const bar = el_('div', 'lav-bar', root);
  const buttons = {};
  const button = (name, label, tip, f) => { const b = el_('button', 'lav-button lav-' + name, bar, label); b.type = 'button'; b.title = tip; b.setAttribute('aria-label', tip); b.onclick = f; buttons[name] = b; return b; };
  const meter = el_('div', 'lav-meter', root);
  const meterLabel = el_('span', '', meter, 'buffer'), track = el_('div', 'lav-track', meter), fill = el_('div', 'lav-fill', track), meterText = el_('span', 'lav-num', meter, '0.00 s');
  meter.title = 'film that is made but not shown yet'; track.setAttribute('role', 'progressbar'); track.setAttribute('aria-label', 'buffer');
  const table = el_('div', 'lav-gauges', root);
  const cells = {};
  const words = el_('details', 'lav-words', root); el_('summary', '', words, 'What these numbers mean');
  const meaning = el_('dl', '', words);
  function gauge(name, label, tip, value) {
    if (!cells[name]) {
      const c = el_('div', 'lav-gauge', table); c.title = tip || ''; el_('span', 'lav-label', c, label);
      cells[name] = el_('span', 'lav-value', c); cells[name].dataset.gauge = name;
      if (tip) { el_('dt', '', meaning, label); el_('dd', '', meaning, tip); }
    }
    cells[name].textContent = value;
  }
  // where the time from a sound to its picture goes, as one stacked bar
  const PARTS = [['capture', 'capture', 'a block must be full of sound before it can be made'], ['features', 'features', 'sound to audio rows'], ['denoise', 'denoise', 'all denoising steps'],
    ['decode', 'decode', 'latents to pictures'], ['transport', 'transport', 'JPEG, kernel, network, browser'], ['playout', 'play-out', 'waits for its turn on the clock']];
  const budget = el_('div', 'lav-budget', root), strip = el_('div', 'lav-strip', budget), legend = el_('div', 'lav-legend', budget);
  budget.hidden = true; strip.setAttribute('role', 'img');
  function showBudget(ms) {
    const all = PARTS.map(([k, label, tip]) => [k, label, tip, Math.max(0, ms[k] || 0)]), total = all.reduce((s, p) => s + p[3], 0);
    if (!total) return;
    budget.hidden = false; strip.textContent = legend.textContent = '';
    for (const [k, label, tip, v] of all) {
      if (!v) continue;
      const part = el_('span', 'lav-part lav-part-' + k, strip); part.style.flexGrow = v; part.title = `${label}: ${Math.round(v)} ms. ${tip}`;
      el_('span', 'lav-key lav-key-' + k, legend, `${label} ${Math.round(v)}`);
    }
    el_('b', '', legend, `= ${Math.round(total)} ms`);
    strip.setAttribute('aria-label', 'Time to the picture: ' + all.filter((p) => p[3]).map((p) => `${p[1]} ${Math.round(p[3])} milliseconds`).join(', '));
    st.budget = Object.fromEntries(all.map((p) => [p[0], p[3]]));
  }

  let cutNow = 0, keepNow = -1, wired = 0, sends = [];
  let ac = null, out = null, queue = [], nodes = new Set();
  let epoch = null, dead = null, next = null, until = 0, rate = 1, muted = false, paused = false, micMode = false, recording = false, active = true;
  let clickAt = null, lastDraw = null, firstDraw = null, playing = false, behindUntil = 0, arrivals = [], finished = false, tickId = 0, dropped = 0;
  const st = { drawn: 0, dropped: 0, under: 0, received: 0, gaps: 0, worst: 0, fps: 0, average: 0, offset: 0, offsets: [], latency: null, latencies: [], ttff: null, buffer: 0, rate: 1, state: 'idle', marks: {}, mic: 0, behind: 0, cuts: 0, lost: false, budget: null, view: id };
  (window.__liveavatar ||= {})[id] = st;
  let recent = [];

  function context() {
    if (!ac) { ac = new AudioContext({ sampleRate: RATE, latencyHint: 'interactive' }); out = ac.createGain(); out.connect(ac.destination); window.__liveavatar_listen?.(ac, out, id); }
    if (ac.state !== 'running' && !paused) ac.resume();
    return ac;
  }
  // sound that leaves the loudspeaker now, on the context's clock
  function heard() {
    if (!ac) return 0;
    const s = ac.getOutputTimestamp ? ac.getOutputTimestamp() : null;
    if (s && s.performanceTime > 0 && ac.state === 'running') {
      const t = s.contextTime + (performance.now() - s.performanceTime) / 1000;
      if (t <= ac.currentTime + .05 && t > ac.currentTime - 1) return t;
    }
    return ac.currentTime - (ac.outputLatency || 0);
  }
  const send = (m, b) => { try { model.send({ v: id, ...m }, undefined, b || []); } catch (e) { } };
  const say = (text, kind) => { note.textContent = text || ''; note.dataset.kind = kind || ''; note.hidden = !text; };
  function size() {
    const s = model.get('side'); root.style.width = `min(${s}px, 100%)`; canvas.style.width = '100%'; canvas.style.aspectRatio = '1';
    const p = Math.round(s * (window.devicePixelRatio || 1)); canvas.width = canvas.height = p; g.imageSmoothingEnabled = true; g.imageSmoothingQuality = 'high';
  }
  function draw(bmp) {
    g.imageSmoothingQuality = 'high'; g.drawImage(bmp, 0, 0, canvas.width, canvas.height);
  }
  function schedule(m, view) {
    const now = ac.currentTime, n = view.byteLength / 2, x = new Float32Array(n), i16 = new Int16Array(bytes(view));
    for (let i = 0; i < n; i++) x[i] = i16[i] / 32767;
    arrivals.push(performance.now() / 1000); if (arrivals.length > 5) arrivals.shift();
    const d = m.nf / FPS;
    let late = false;
    if (next === null) next = now + (m.heard ? .05 : model.get('lead'));
    else if (next < now + .005) { late = true; st.under++; next = now + .06; }
    // the maker's pace: seconds of film made in a second
    const pace = m.ms > 0 ? d * 1000 / m.ms : 9;
    if (m.heard) rate = next - now > .12 && !late ? 1.08 : 1;            // live: only ever catch up
    else {
      if (late && st.under > 0) behindUntil = performance.now() + 4000;
      const want = pace < 1.02 || performance.now() < behindUntil ? Math.min(1, Math.max(.4, .94 * pace)) : 1;
      rate += (want < rate ? .6 : .25) * (want - rate); if (rate > .97) rate = 1;
    }
    st.rate = rate;
    if (rate < 1) {
      st.behind++;
      const slow = pace < 1.02;
      say(slow ? `Falling behind: this computer makes ${Math.floor(25 * Math.min(.98, pace))} of 25 frames a second, so picture and sound run at ${Math.round(100 * rate)} % speed. ${model.get('advice')}`
        : `A block came late. Picture and sound run at ${Math.round(100 * rate)} % speed for a moment.`, 'behind');
    }
    else if (note.dataset.kind === 'behind') { say('', ''); showStatus(); }
    const b = ac.createBuffer(1, n, RATE); b.copyToChannel(x, 0);
    const s = ac.createBufferSource(); s.buffer = b; s.playbackRate.value = rate; s.connect(out);
    const at = Math.round(next * RATE) / RATE; s.start(at); nodes.add(s); s.onended = () => { nodes.delete(s); s.disconnect(); };
    next = at + d / rate; until = m.pts + d;
    return { at, rate };
  }
  async function block(m, bufs) {
    if (m.e === dead || m.cut < cutNow) return;            // of a stopped run, or of an utterance that was interrupted
    if (m.e !== epoch) { clear(); epoch = m.e; fresh(); cutNow = m.cut || 0; }
    const came = performance.now();
    context(); st.received++; finished = false; playing = true; state('playing');
    if (m.heard != null) micMode = true; else micMode = false;
    volume();
    const { at, rate: r } = schedule(m, bufs[m.nf]);
    const parts = m.parts || {}, work = m.ms || 0;
    if (m.heard != null) {                                 // measured for the first picture of the block
      const full = m.heard + m.nf * 1000 / FPS, sent = sends.find((t) => t >= full - 1) ?? came - work;
      showBudget({ ...parts, capture: sent - m.heard, transport: came - sent - work, playout: (at - heard()) * 1000 });
      sends = sends.filter((t) => t > sent);
    } else showBudget({ ...parts, transport: m.wait || 0, playout: (at - heard()) * 1000 });
    const made = bufs.slice(0, m.nf).map((v, i) => createImageBitmap(new Blob([v], { type: 'image/jpeg' })).then(bmp => ({ bmp, due: at + i / FPS / r, pts: m.pts + i / FPS, block: m.n, cut: m.cut || 0, first: i === 0, mark: i === 0 ? m.mark : null, heard: m.heard == null ? null : m.heard + i * 40 })));
    const e = epoch;
    for (const p of made) { let f; try { f = await p; } catch { continue; } if (e !== epoch || dead === e || (f.cut < cutNow && f.block > keepNow)) { f.bmp.close(); continue; } let i = queue.length; while (i && queue[i - 1].due > f.due) i--; queue.splice(i, 0, f); }
    while (queue.length > (document.hidden ? 30 : 250)) { queue.shift().bmp.close(); st.dropped++; }   // hidden tabs don't draw
  }
  function tick() {
    if (!el.isConnected && root.dataset.seen) { cleanup(); return; }
    if (el.isConnected) root.dataset.seen = 1;
    if (ac && !paused && queue.length) {
      const t = heard(); let f = null;
      while (queue.length && queue[0].due <= t + .008) { if (f) { f.bmp.close(); st.dropped++; if (f.mark) hit(f.mark); } f = queue.shift(); }
      if (f) {
        draw(f.bmp); f.bmp.close();
        const now = performance.now();
        st.drawn++; st.block = f.block; st.pts = f.pts;
        if (firstDraw === null) { firstDraw = now; if (clickAt !== null) { st.ttff = (now - clickAt) / 1000; clickAt = null; send({ k: 'first', ttff: st.ttff }); } if (note.dataset.kind !== 'behind') { say('', ''); } }
        if (f.mark) hit(f.mark);
        if (lastDraw !== null) { const gap = now - lastDraw; if (now - firstDraw > 1000) { if (gap > st.worst) st.worst = gap; if (gap > 200) st.gaps++; } }
        lastDraw = now; recent.push(now); while (recent.length && recent[0] < now - 2000) recent.shift();
        st.offset = (f.due - heard()) * 1000;      // picture minus sound: + the picture is early
        st.offsets.push(st.offset); if (st.offsets.length > 20000) st.offsets.splice(0, 10000);
        if (f.heard !== null) { st.latency = now - f.heard; st.latencies.push(st.latency); if (st.latencies.length > 20000) st.latencies.splice(0, 10000); }
      }
    }
    if (finished && ac && !queue.length && playing && heard() >= next - .02) { playing = false; lastDraw = null; if (note.dataset.kind === 'behind') { note.dataset.kind = ''; showStatus(); } state('idle'); send({ k: 'ended', e: epoch }); }
    tickId = requestAnimationFrame(tick);
  }
  function hit(mark) { st.marks[mark] = performance.now(); const from = model.__asked?.[mark]; }
  function state(s) { if (st.state !== s) { st.state = s; root.dataset.state = s; look(); } }
  function fresh() { Object.assign(st, { drawn: 0, dropped: 0, under: 0, received: 0, gaps: 0, worst: 0, fps: 0, average: 0, offset: 0, offsets: [], latency: null, latencies: [], buffer: 0, rate: 1, behind: 0 }); firstDraw = lastDraw = null; next = null; rate = 1; recent = []; arrivals = []; behindUntil = 0; }
  // a new utterance: silence now, and no picture of the old one after block `keep`; what comes next joins there
  function cut(m) {
    if (m.e !== epoch || m.cut <= cutNow) return;
    cutNow = m.cut; keepNow = m.keep; st.cuts++; st.cutAt = performance.now();
    for (const s of nodes) { try { s.stop(); } catch { } } nodes.clear();
    const now = ac ? heard() : 0, kept = queue.filter((f) => f.block <= m.keep && f.due < now + .5);
    for (const f of queue) if (!kept.includes(f)) f.bmp.close();
    queue = kept; for (const f of queue) f.cut = cutNow;
    if (ac && next !== null) { next = queue.length ? queue.at(-1).due + 1 / FPS : ac.currentTime + .05; until = m.pts; }
    finished = false; st.silentAt = performance.now();
  }
  function clear() { for (const s of nodes) { try { s.stop(); } catch { } } nodes.clear(); queue.forEach(f => f.bmp.close()); queue = []; next = null; playing = false; }
  function volume() { if (out) out.gain.value = muted || (micMode && !model.get('echo')) || !active ? 0 : 1; }
  function look() {
    const on = st.state !== 'idle';
    const was = document.activeElement;
    buttons.start.disabled = st.state === 'playing' || st.state === 'starting'; buttons.pause.disabled = buttons.stop.disabled = !on; buttons.record.disabled = !on && !recording;
    buttons.pause.textContent = paused ? '▶ Resume' : '❚❚ Pause'; buttons.mute.textContent = muted ? '♪ Unmute' : '♪ Mute';
    buttons.mute.setAttribute('aria-pressed', muted); buttons.record.setAttribute('aria-pressed', recording); buttons.record.textContent = recording ? '■ Save film' : '● Record';
    if (was === buttons.start && buttons.start.disabled) (buttons.pause.disabled ? buttons.mute : buttons.pause).focus();   // the keyboard's place isn't lost
    if ((was === buttons.stop || was === buttons.pause) && was.disabled) buttons.start.focus();
    stage.dataset.paused = paused ? 1 : '';
    if (buttons.mic) { buttons.mic.textContent = mic ? '◉ Mic off' : '◉ Speak'; buttons.mic.setAttribute('aria-pressed', !!mic); }
  }
  function begin() { context(); paused = false; active = true; clickAt = performance.now(); state('starting'); say('Starting…', 'info'); send({ k: 'start' }); look(); }
  button('start', '▶ Start', 'Start the stream', begin);
  button('pause', '❚❚ Pause', 'Pause or go on, to the frame', () => { if (!ac) return; paused = !paused; (paused ? ac.suspend() : ac.resume()); lastDraw = null; send({ k: 'pause', on: paused }); look(); });
  button('stop', '■ Stop', 'Stop the stream and free its memory', () => { dead = epoch; clear(); closeMic(); paused = false; ac?.resume(); state('idle'); clickAt = null; lastDraw = null; say('', ''); send({ k: 'stop' }); });
  button('mute', '♪ Mute', 'Sound off or on', () => { muted = !muted; volume(); look(); });
  button('record', '● Record', 'Record to an mp4 file; press again to save it', () => { recording = !recording; send({ k: 'record', on: recording }); look(); });
  // microphone
  let mic = null, mc = null, micLevel = 0;
  async function openMic() {
    try { mic = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true } }); }
    catch (e) { mic = null; say(!navigator.mediaDevices ? 'The microphone needs a page from https or from this computer (localhost).' : e.name === 'NotAllowedError' ? 'The browser may not use the microphone: allow it beside the address bar, then press Speak again.' : 'No microphone was found: plug one in, or choose another voice source.', 'error'); look(); return; }
    mc = new AudioContext({ sampleRate: RATE, latencyHint: 'interactive' });
    const url = URL.createObjectURL(new Blob([CAPTURE], { type: 'text/javascript' }));
    await mc.audioWorklet.addModule(url); URL.revokeObjectURL(url);
    const w = new AudioWorkletNode(mc, 'capture', { numberOfOutputs: 0 });
    if (st.state === 'idle') begin();
    send({ k: 'mic', on: true });
    w.port.onmessage = (e) => { if (!mic) return; const x = new Int16Array(e.data); let s = 0; for (const v of x) s += v * v; micLevel = Math.sqrt(s / x.length) / 32768; st.micLevel = micLevel; st.mic++; sends.push(performance.now()); if (sends.length > 50) sends.shift(); send({ k: 'sound', t: performance.now() - CHUNK_MS }, [e.data]); };
    mc.createMediaStreamSource(mic).connect(w); look();
  }
  function closeMic() { if (!mic) return; mic.getTracks().forEach(t => t.stop()); mic = null; mc?.close(); mc = null; send({ k: 'mic', on: false }); look(); }
  if (model.get('microphone')) button('mic', '◉ Speak', 'Speak into the microphone; the avatar says it live', () => mic ? closeMic() : openMic());

  function showStatus() { const s = model.get('status'); if (!s || !s.text) { if (note.dataset.kind !== 'behind' && !st.lost) say('', ''); return; } if (note.dataset.kind !== 'behind' || s.kind === 'error') say(s.text, s.kind); }
  function showGauges() { for (const [name, label, tip, value] of model.get('gauges')) gauge(name, label, tip, value); }
  let showing = 0;
  function report() {
    watchdog();
    const t = ac ? heard() : 0, stored = ac && next !== null && playing ? Math.max(0, next - ac.currentTime) : 0;
    st.buffer = stored; st.fps = recent.length > 1 && performance.now() - recent[recent.length - 1] < 1000 ? (recent.length - 1) * 1000 / (recent[recent.length - 1] - recent[0]) : 0;
    st.average = firstDraw !== null && lastDraw > firstDraw ? (st.drawn - 1) * 1000 / (lastDraw - firstDraw) : 0;
    send({ k: 'report', e: epoch, buffer: stored, until, rate, paused, hidden: document.hidden, under: st.under, block: st.block ?? -1 });
    fill.style.width = Math.min(100, stored / 1.5 * 100) + '%'; fill.dataset.low = stored < .1 && playing ? 1 : 0; meterText.textContent = stored.toFixed(2) + ' s';
    if (showing++ % 2) return;
    const live = st.state === 'playing', off = st.offsets.slice(-50), lat = st.latencies.slice(-25), med = (a) => a.slice().sort((x, y) => x - y)[a.length >> 1];
    gauge('fps', 'frames a second', 'frames shown in the last two seconds; the film has 25', live ? st.fps.toFixed(1) : '–');
    gauge('gap', 'longest gap', 'longest time without a new frame after the first second', live ? Math.round(st.worst) + ' ms' : '–');
    gauge('offset', 'picture − sound', 'how early (+) or late (−) the picture is against the sound that is heard', live && off.length ? Math.round(med(off)) + ' ms' : '–');
    gauge('ttff', 'first frame after', 'from the click on Start to the first frame', st.ttff === null ? '–' : st.ttff.toFixed(2) + ' s');
    gauge('latency', 'sound → picture', 'from sound at the microphone to the picture that shows it', live && lat.length ? (med(lat) / 1000).toFixed(2) + ' s' : '–');
  }
  // the watchdog: the kernel answers each report; when it falls silent, say so instead of showing a frozen face
  function alive() {
    wired = performance.now();
    if (st.lost) { st.lost = false; send({ k: 'stop' }); note.dataset.kind = ''; showStatus(); look(); }    // the page has let go of that run: so must the kernel
  }
  function watchdog() {
    if (!wired || st.lost || performance.now() - wired < 1000 * SILENT_S) return;
    st.lost = true; dead = epoch; clear(); closeMic(); state('idle'); clickAt = null;
    say('The program behind this page does not answer: it was stopped, or the connection broke. Reload the page; if that fails, start it again (liveavatar-nb demo).', 'error');
    buttons.start.disabled = true;
  }
  model.on('msg:custom', (m, bufs) => {
    alive();
    if (m.k === 'pulse') return;
    if (m.k === 'block') block(m, bufs);
    else if (m.k === 'end') { if (m.e === epoch) finished = true; }
    // the end of a run that was stopped before may arrive after the next start: it must not close that one's microphone
    else if (m.k === 'stopped') { if (epoch === null || (st.state === 'starting' ? m.e > epoch : m.e === epoch)) { dead = epoch; clear(); closeMic(); state('idle'); clickAt = null; recording = false; note.dataset.kind = ''; showStatus(); look(); } }
    else if (m.k === 'cut') cut(m);
    else if (m.k === 'micoff') closeMic();
    else if (m.k === 'refused') { clickAt = null; state('idle'); note.dataset.kind = ''; showStatus(); look(); }
    else if (m.k === 'begin') { if (st.state === 'idle') { clickAt = performance.now(); context(); paused = false; state('starting'); } }
    else if (m.k === 'still') { createImageBitmap(new Blob([bufs[0]], { type: 'image/jpeg' })).then(b => { if (st.state !== 'playing') draw(b); b.close(); }); }
    else if (m.k === 'file') {
      recording = false; look();
      const a = links.querySelector('a') || el_('a', 'lav-file', links); if (a.href) URL.revokeObjectURL(a.href);
      a.href = URL.createObjectURL(new Blob([bufs[0]], { type: 'video/mp4' })); a.download = m.name; a.textContent = `↓ ${m.name} (${m.seconds.toFixed(1)} s)`; a.title = 'Keep the recorded film';
    } else if (m.k === 'active') { active = m.v === id; volume(); }
  });
  const links = el_('div', 'lav-links', root);
  model.on('change:status', showStatus); model.on('change:gauges', showGauges); model.on('change:side', size); model.on('change:echo', volume);
  size(); g.fillStyle = '#10151c'; g.fillRect(0, 0, canvas.width, canvas.height); say('', ''); showStatus(); report(); showGauges(); state('idle'); look();
  const timer = setInterval(report, 200); tickId = requestAnimationFrame(tick);
  const bye = () => send({ k: 'bye' }); window.addEventListener('pagehide', bye);
  let gone = false;
  function cleanup() { if (gone) return; gone = true; clearInterval(timer); cancelAnimationFrame(tickId); window.removeEventListener('pagehide', bye); closeMic(); clear(); send({ k: 'bye' }); ac?.close(); ac = null; delete window.__liveavatar[id]; }
  send({ k: 'ready' });
  return cleanup;
}
export default { render };
