// Hands the microphone's samples to the page, 20 ms at a time.
registerProcessor('capture', class extends AudioWorkletProcessor {
  constructor() { super(); this.held = []; this.size = 0; }
  process([[channel]]) {
    if (!channel) return true;
    this.held.push(channel.slice()); this.size += channel.length;
    if (this.size >= 320) {
      const out = new Float32Array(this.size);
      let at = 0;
      for (const piece of this.held) { out.set(piece, at); at += piece.length; }
      this.port.postMessage(out, [out.buffer]);
      this.held = []; this.size = 0;
    }
    return true;
  }
});
