// The page's codecs run in the Python process that serves it (llmcodec demo).

export const where = "The codecs run on this computer, in the program that serves this page.";

async function ask(path, body) {
  const response = await fetch(path, body === undefined ? {} : { method: "POST", body });
  if (!response.ok) throw new Error(await response.text());
  return response;
}

/** -> [{name, sample_rate, frame_rate, codebook_size, levels, bits_per_second}] */
export async function codecs() {
  return (await ask("api/codecs")).json();
}

/** Mono samples -> {codes: Int32Array [frames * levels], levels, frames, num_samples}. */
export async function encode(codec, pcm, rate) {
  const query = new URLSearchParams({ codec: codec.name, rate });
  const response = await ask(`api/encode?${query}`, pcm);
  const codes = new Int32Array(await response.arrayBuffer());
  const num_samples = Number(response.headers.get("X-Num-Samples"));
  return { codes, levels: codec.levels, frames: codes.length / codec.levels, num_samples };
}

/** Tokens -> Float32Array at the codec's rate. */
export async function decode(codec, tokens) {
  const response = await ask(`api/decode?${new URLSearchParams({ codec: codec.name })}`, tokens.codes);
  return new Float32Array(await response.arrayBuffer()).slice(0, tokens.num_samples);
}

/** -> {sample_rate} where a speech LM speaks, else null. */
export async function speech() {
  return (await ask("api/speech")).json();
}

/** Text -> Float32Array at the speech LM's rate. */
export async function speak(text) {
  return new Float32Array(await (await ask("api/speak", text)).arrayBuffer());
}
