// The page's codec runs in the browser itself: encoder.onnx and decoder.onnx under onnxruntime-web.
import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more threads need headers that a plain file server does not send
ort.env.logLevel = "error"; // it warns of processors that browsers hide
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;

export const where = "The codec runs in this browser: nothing is sent anywhere.";

const sessions = {};

function session(part) {
  sessions[part] ??= ort.InferenceSession.create(`${part}.onnx`, { executionProviders: ["wasm"] });
  return sessions[part];
}

/** -> the one codec of this site. */
export async function codecs() {
  return [await (await fetch("codec.json")).json()];
}

/** Mono samples -> {codes: Int32Array [frames * levels], levels, frames, num_samples}. */
export async function encode(codec, pcm, rate) {
  const wav = await resample(pcm, rate, codec.sample_rate);
  if (wav.length < codec.min_samples) throw new Error("This is too short: give it a tenth of a second.");
  const encoder = await session("encoder");
  const { codes } = await encoder.run({ wav: new ort.Tensor("float32", wav, [1, wav.length]) });
  const frames = codes.dims[1];
  return { codes: codes.data, levels: codec.levels, frames, num_samples: wav.length };
}

/** Tokens -> Float32Array at the codec's rate. */
export async function decode(codec, tokens) {
  const dims = codec.levels === 1 ? [1, tokens.frames] : [1, tokens.frames, codec.levels];
  const decoder = await session("decoder");
  const { wav } = await decoder.run({ codes: new ort.Tensor("int32", tokens.codes, dims) });
  return wav.data.slice(0, tokens.num_samples);
}

async function resample(pcm, from, to) {
  if (from === to) return pcm;
  const context = new OfflineAudioContext(1, Math.ceil(pcm.length * to / from), to);
  const source = context.createBufferSource();
  source.buffer = new AudioBuffer({ length: pcm.length, sampleRate: from, numberOfChannels: 1 });
  source.buffer.copyToChannel(pcm, 0);
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** Nothing speaks in the browser alone. */
export async function speech() {
  return null;
}

export async function speak() {
  throw new Error("no speech LM runs in the browser");
}
