// Pictures of sound and of tokens on canvases, sharp on any screen.

function prepare(canvas) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = Number(canvas.getAttribute("height"));
  canvas.style.height = `${height}px`;
  canvas.width = Math.max(1, Math.round(width * scale));
  if (!canvas.dataset.height) canvas.dataset.height = height;
  canvas.height = Math.max(1, Math.round(canvas.dataset.height * scale));
  canvas.style.height = `${canvas.dataset.height}px`;
  return canvas.getContext("2d");
}

/** The waveform's envelope. */
export function drawWave(canvas, pcm) {
  const context = prepare(canvas), { width, height } = canvas, step = pcm.length / width;
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  for (let x = 0; x < width; x++) {
    let low = 0, high = 0;
    const end = Math.min(pcm.length, Math.ceil((x + 1) * step));
    for (let i = Math.floor(x * step); i < end; i++) {
      low = Math.min(low, pcm[i]);
      high = Math.max(high, pcm[i]);
    }
    context.fillRect(x, (1 - high) * height / 2, 1, Math.max(1, (high - low) * height / 2));
  }
}

/** A log spectrogram on a mel-like frequency axis up to 8 kHz, 60 dB deep. */
export function drawMel(canvas, pcm, rate) {
  const context = prepare(canvas), columns = Math.min(600, canvas.width), rows = 80, size = 1024;
  const image = context.createImageData(columns, rows), fft = makeFft(size);
  const top = Math.min(8000, rate / 2), mel = (hz) => Math.log1p(hz / 700);
  const bins = Array.from({ length: rows + 1 }, (_, r) => 700 * Math.expm1(mel(top) * r / rows) * size / rate);
  const levels = new Float32Array(columns * rows);
  let loudest = -Infinity;
  for (let x = 0; x < columns; x++) {
    const power = fft(pcm, Math.round((x + 0.5) * pcm.length / columns) - size / 2);
    for (let r = 0; r < rows; r++) {
      let sum = 0;
      const from = Math.floor(bins[r]), to = Math.max(from + 1, Math.floor(bins[r + 1]));
      for (let b = from; b < to; b++) sum += power[b] || 0;
      const level = 10 * Math.log10(sum / (to - from) + 1e-10);
      levels[r * columns + x] = level;
      loudest = Math.max(loudest, level);
    }
  }
  for (let r = 0; r < rows; r++) {
    for (let x = 0; x < columns; x++) {
      const at = 4 * ((rows - 1 - r) * columns + x);
      image.data.set(warm((levels[r * columns + x] - loudest + 60) / 60), at);
    }
  }
  const sheet = new OffscreenCanvas(columns, rows);
  sheet.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(sheet, 0, 0, canvas.width, canvas.height);
}

function warm(share) { // black, violet, orange, pale yellow
  const t = Math.max(0, Math.min(1, share));
  return [255 * Math.min(1, 1.7 * t), 255 * t * t, 255 * (0.55 * Math.sin(Math.PI * t) + 0.75 * t ** 6), 255];
}

/** One column a frame, one row a codebook; a code's colour is its own, so that repeats are seen. */
export function drawStrip(canvas, { codes, levels, frames }) {
  canvas.dataset.height = Math.max(28, Math.min(160, 12 * levels));
  const context = prepare(canvas), row = canvas.height / levels, column = canvas.width / frames;
  for (let t = 0; t < frames; t++) {
    for (let q = 0; q < levels; q++) {
      const code = codes[t * levels + q];
      context.fillStyle = `hsl(${(code * 137.508) % 360} 62% ${42 + (code * 7) % 26}%)`;
      context.fillRect(Math.floor(t * column), Math.floor(q * row), Math.ceil(column), Math.ceil(row));
    }
  }
}

/** -> (samples, start) => power of each bin under a Hann window. */
function makeFft(size) {
  const window = Float32Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / size));
  const real = new Float32Array(size), imaginary = new Float32Array(size), bits = Math.log2(size);
  const reversed = Uint16Array.from({ length: size }, (_, i) => {
    let flipped = 0;
    for (let b = 0; b < bits; b++) flipped = (flipped << 1) | ((i >> b) & 1);
    return flipped;
  });
  return (samples, start) => {
    for (let i = 0; i < size; i++) {
      real[reversed[i]] = (samples[start + i] || 0) * window[i];
      imaginary[i] = 0;
    }
    for (let half = 1; half < size; half *= 2) {
      for (let k = 0; k < half; k++) {
        const c = Math.cos(Math.PI * k / half), s = -Math.sin(Math.PI * k / half);
        for (let i = k; i < size; i += 2 * half) {
          const j = i + half, re = c * real[j] - s * imaginary[j], im = s * real[j] + c * imaginary[j];
          real[j] = real[i] - re; imaginary[j] = imaginary[i] - im;
          real[i] += re; imaginary[i] += im;
        }
      }
    }
    return Float32Array.from({ length: size / 2 }, (_, i) => (real[i] ** 2 + imaginary[i] ** 2) / size ** 2);
  };
}
