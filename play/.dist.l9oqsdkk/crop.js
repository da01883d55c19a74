// Choose the square of a picture: drag it, or move it with the arrow keys, + and - change its size.
export const LIMITS = { bytes: 20e6, pixels: 50e6 };

const WORDS = 'The model was trained on drawn faces. A photograph is outside its world: expect it to be repainted or to fall apart. '
  + 'A drawn face works best: seen from the front, eyes in the upper half, some background around it.';

export async function opened(file, most = LIMITS.bytes) { // an ImageBitmap, or an error of one line
  if (file.size > most) throw new Error(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB: give a picture of at most ${most / 1e6} MB`);
  let image;
  try { image = await createImageBitmap(file, { imageOrientation: 'from-image' }); } catch { throw new Error(`${file.name} is not a picture that this browser can read: give a png, jpg or webp`); }
  if (Math.min(image.width, image.height) < 32) throw new Error(`${file.name} is ${image.width} × ${image.height}: at least 32 × 32 pixels are needed`);
  if (image.width * image.height > LIMITS.pixels) throw new Error(`${file.name} is ${image.width} × ${image.height}: at most ${LIMITS.pixels / 1e6} million pixels`);
  return image;
}

export function chooser(parent, image, use, cancel, { square, words = WORDS } = {}) {
  const scale = Math.min(1, 320 / Math.max(image.width, image.height)), w = Math.round(image.width * scale), h = Math.round(image.height * scale);
  let side = Math.min(w, h), x = (w - side) / 2, y = Math.min((h - side) / 2, h * .05);   // a face is usually in the upper part
  if (square) { [x, y, side] = square.map((v) => v * scale); }
  parent.innerHTML = `<div class="crop"><canvas width="${w}" height="${h}" tabindex="0" role="application"
    aria-label="The square that is used. Arrow keys move it, plus and minus change its size."></canvas>
    <label>Size <input type="range" min="20" max="100" value="${100 * side / Math.min(w, h)}"></label><p></p>
    <div class="row"><button type="button" class="main">Use this square</button><button type="button">Cancel</button></div></div>`;
  parent.querySelector('p').textContent = words;
  const canvas = parent.querySelector('canvas'), c = canvas.getContext('2d'), range = parent.querySelector('input'), [ok, no] = parent.querySelectorAll('button');
  const within = (v, most) => Math.max(0, Math.min(v, most));
  const draw = () => {
    x = within(x, w - side); y = within(y, h - side);
    c.drawImage(image, 0, 0, w, h);
    c.fillStyle = '#000a';
    c.fillRect(0, 0, w, y); c.fillRect(0, y + side, w, h - y - side); c.fillRect(0, y, x, side); c.fillRect(x + side, y, w - x - side, side);
    c.strokeStyle = '#fff'; c.lineWidth = 2; c.strokeRect(x + 1, y + 1, side - 2, side - 2);
  };
  const resize = (to) => {
    const next = within(to, Math.min(w, h));
    x += (side - next) / 2; y += (side - next) / 2; side = Math.max(16, next);
    range.value = 100 * side / Math.min(w, h); draw();
  };
  let from = null;
  canvas.onpointerdown = (e) => { from = [e.offsetX, e.offsetY, x, y]; canvas.setPointerCapture(e.pointerId); };
  canvas.onpointermove = (e) => {
    if (!from) return;
    const k = w / canvas.clientWidth;
    x = from[2] + (e.offsetX - from[0]) * k; y = from[3] + (e.offsetY - from[1]) * k; draw();
  };
  canvas.onpointerup = () => { from = null; };
  canvas.onkeydown = (e) => {
    const move = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }[e.key];
    if (move) { x += move[0]; y += move[1]; draw(); } else if (e.key === '+') resize(side * 1.08); else if (e.key === '-') resize(side / 1.08); else return;
    e.preventDefault();
  };
  range.oninput = () => resize(range.value / 100 * Math.min(w, h));
  no.onclick = () => { parent.innerHTML = ''; parent.hidden = true; cancel?.(); };
  ok.onclick = () => { use({ x: x / scale, y: y / scale, side: side / scale }); parent.innerHTML = ''; parent.hidden = true; };
  parent.hidden = false; draw(); canvas.focus();
}

export function cut(image, { x, y, side }, size) {       // RGBA bytes of the square, size x size
  const canvas = new OffscreenCanvas(size, size), c = canvas.getContext('2d');
  c.imageSmoothingQuality = 'high';
  c.drawImage(image, x, y, side, side, 0, 0, size, size);
  return c.getImageData(0, 0, size, size).data;
}
