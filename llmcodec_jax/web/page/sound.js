// Sound as numbers: reading files, recording, writing .wav and token files.

/** A file's bytes -> {pcm: Float32Array (mono), rate}. WAV is read as it stands, the rest by the browser. */
export async function readSound(buffer) {
  const wav = readWav(buffer);
  if (wav) return wav;
  const context = new AudioContext();
  try {
    const decoded = await context.decodeAudioData(buffer);
    return { pcm: mono(channelsOf(decoded)), rate: decoded.sampleRate };
  } finally {
    context.close();
  }
}

function channelsOf(decoded) {
  return Array.from({ length: decoded.numberOfChannels }, (_, i) => decoded.getChannelData(i));
}

function mono(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

/** RIFF WAVE of 16, 24, 32 bit integers or 32 bit floats; null for anything else. */
export function readWav(buffer) {
  const view = new DataView(buffer);
  const tag = (at) => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  if (buffer.byteLength < 44 || tag(0) !== "RIFF" || tag(8) !== "WAVE") return null;
  let format = null;
  for (let at = 12; at + 8 <= buffer.byteLength; ) {
    const size = view.getUint32(at + 4, true), start = at + 8;
    if (tag(at) === "fmt ") {
      format = { kind: view.getUint16(start, true), channels: view.getUint16(start + 2, true),
        rate: view.getUint32(start + 4, true), bits: view.getUint16(start + 14, true) };
      if (format.kind === 0xfffe && size >= 26) format.kind = view.getUint16(start + 24, true);
    } else if (tag(at) === "data" && format) {
      const read = sampleReader(view, format);
      if (!read) return null;
      const width = format.bits / 8, end = Math.min(start + size, buffer.byteLength);
      const frames = Math.floor((end - start) / (width * format.channels));
      const pcm = new Float32Array(frames);
      for (let i = 0; i < frames; i++) {
        let sum = 0;
        for (let c = 0; c < format.channels; c++) sum += read(start + (i * format.channels + c) * width);
        pcm[i] = sum / format.channels;
      }
      return { pcm, rate: format.rate };
    }
    at = start + size + (size & 1);
  }
  return null;
}

function sampleReader(view, { kind, bits }) {
  if (kind === 3 && bits === 32) return (at) => view.getFloat32(at, true);
  if (kind !== 1) return null;
  if (bits === 16) return (at) => view.getInt16(at, true) / 32768;
  if (bits === 24) return (at) => ((view.getInt8(at + 2) << 16) | view.getUint16(at, true)) / 8388608;
  return bits === 32 ? (at) => view.getInt32(at, true) / 2147483648 : null;
}

/** Float samples -> a 16-bit .wav as a Blob. */
export function writeWav(pcm, rate) {
  const bytes = new ArrayBuffer(44 + 2 * pcm.length), view = new DataView(bytes);
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * pcm.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * pcm.length, true);
  pcm.forEach((value, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return new Blob([bytes], { type: "audio/wav" });
}

/** Starts the microphone -> a function that stops it and returns {pcm, rate}. */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext(), source = context.createMediaStreamSource(stream);
  await context.audioWorklet.addModule("recorder.js");
  const node = new AudioWorkletNode(context, "recorder"), blocks = [];
  node.port.onmessage = ({ data }) => blocks.push(data);
  source.connect(node);
  return async () => {
    source.disconnect();
    stream.getTracks().forEach((track) => track.stop());
    const pcm = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
    blocks.reduce((at, block) => (pcm.set(block, at), at + block.length), 0);
    const rate = context.sampleRate;
    await context.close();
    return { pcm, rate };
  };
}

/** Named numpy arrays -> an .npz (an uncompressed zip) as a Blob; the token file of docs/codecs.md. */
export function writeNpz(arrays) {
  const parts = [], directory = [];
  let offset = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(arrays)) {
    const file = npy(dtype, shape, data), path = new TextEncoder().encode(`${name}.npy`);
    const shared = [20, 0, 0, 0, 0x21, crc32(file), file.length, file.length, path.length, 0];
    const local = packed([0x04034b50, ...shared], "IHHHHHIIIHH");
    const central = packed([0x02014b50, 20, ...shared, 0, 0, 0, 0, offset], "IHHHHHHIIIHHHHHII");
    parts.push(local, path, file);
    directory.push(central, path);
    offset += local.length + path.length + file.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0), count = directory.length / 2;
  const end = packed([0x06054b50, 0, 0, count, count, size, offset, 0], "IHHHHIIH");
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function npy(dtype, shape, data) {
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
  const header = `{'descr': '${dtype}', 'fortran_order': False, 'shape': ${tuple}, }`;
  const text = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const body = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const file = new Uint8Array(10 + text.length + body.length);
  file.set([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, text.length & 255, text.length >> 8]);
  file.set(new TextEncoder().encode(text), 10);
  file.set(body, 10 + text.length);
  return file;
}

function packed(values, layout) {
  const sizes = { H: 2, I: 4 }, bytes = new Uint8Array([...layout].reduce((sum, kind) => sum + sizes[kind], 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  [...layout].forEach((kind, i) => {
    if (kind === "H") view.setUint16(at, values[i], true);
    else view.setUint32(at, values[i], true);
    at += sizes[kind];
  });
  return bytes;
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
