// One file from the reader's disk: its size is checked before anything is sent, it travels in pieces of 1 MB, and a picture's square is chosen here.
const PIECE = 1e6, SIDE = 768;

async function small(image) {                            // at most SIDE pixels a side: more than any model here looks at
  const k = Math.min(1, SIDE / Math.max(image.width, image.height)), w = Math.max(1, Math.round(image.width * k)), h = Math.max(1, Math.round(image.height * k));
  const canvas = new OffscreenCanvas(w, h), c = canvas.getContext('2d');
  c.imageSmoothingQuality = 'high'; c.drawImage(image, 0, 0, w, h);
  return { blob: await canvas.convertToBlob({ type: 'image/png' }), image: await createImageBitmap(canvas) };
}

function render({ model, el }) {
  const root = document.createElement('div'); root.className = 'lav-pick'; el.append(root);
  const button = document.createElement('button'), input = document.createElement('input'), line = document.createElement('div'), crop = document.createElement('div');
  button.type = 'button'; button.className = 'lav-button'; button.textContent = model.get('label'); button.title = model.get('tip'); button.setAttribute('aria-label', model.get('tip'));
  input.type = 'file'; input.accept = model.get('accept'); input.hidden = true;
  line.className = 'lav-pick-line'; line.setAttribute('role', 'status'); crop.hidden = true;
  root.append(button, input, line, crop);
  const say = (text, bad) => { line.textContent = text; line.classList.toggle('lav-bad', !!bad); };
  let image = null, id = 0;
  button.onclick = () => input.click();

  async function send(name, blob) {
    const data = new Uint8Array(await blob.arrayBuffer()), n = Math.max(1, Math.ceil(data.length / PIECE)), mine = ++id;
    for (let i = 0; i < n; i++) {
      model.send({ k: 'part', id: mine, i, n, size: data.length, name }, undefined, [data.slice(i * PIECE, (i + 1) * PIECE).buffer]);
      if (n > 1) { say(`${name}: ${Math.round(100 * (i + 1) / n)} %`); await new Promise((r) => setTimeout(r, 10)); }
    }
  }
  input.onchange = async () => {
    const [file] = input.files, most = model.get('limit');
    input.value = '';
    if (!file) return;
    if (file.size > most) return say(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB: at most ${Math.round(most / 1e6)} MB are taken. Make it smaller first.`, true);
    if (!file.size) return say(`${file.name} is empty.`, true);
    try {
      say(`${file.name} …`);
      if (!model.get('picture')) return await send(file.name, file);
      const copy = await small(await opened(file, most));
      image = copy.image;
      await send(file.name, copy.blob);
    } catch (e) { say(e.message, true); }
  };
  model.on('msg:custom', (m) => {
    if (m.k === 'say') say(m.text, m.bad);
    if (m.k === 'suggest' && image) {
      say('');
      chooser(crop, image, (square) => { const r = [square.x, square.y, square.side].map(Math.floor); model.send({ k: 'use', crop: r }); button.focus(); }, () => { say(''); button.focus(); },
        { square: m.crop, words: m.words });
    }
  });
}
export default { render };
