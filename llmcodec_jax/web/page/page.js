// The page: a sound comes in, every chosen codec answers with a card to look at and to listen to.
import { codecs, decode, encode, speak, speech, where } from "./backend.js";
import { drawMel, drawStrip, drawWave } from "./draw.js";
import { readSound, record, writeNpz, writeWav } from "./sound.js";

const MAX_SECONDS = 60;
const find = (id) => document.getElementById(id);
const drawings = []; // functions that draw again when the window changes
let known = [], busy = false;

function say(message, failed = false) {
  find("status").textContent = message;
  find("status").className = failed ? "error" : "";
}

function rateOf(bits) {
  return bits >= 1000 ? `${(bits / 1000).toFixed(2)} kb/s` : `${Math.round(bits)} b/s`;
}

/** A card with a player and pictures that share one play position. */
function addCard(title, facts, pcm, rate, tokens) {
  const card = find("card").content.cloneNode(true).firstElementChild;
  const part = (name) => card.querySelector(name);
  part("h2").textContent = title;
  part(".facts").textContent = facts;
  const player = part("audio"), file = URL.createObjectURL(writeWav(pcm, rate));
  player.src = file;
  find("results").append(card);
  const playFrom = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const share = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    player.currentTime = share * pcm.length / rate;
    player.play();
  };
  const draw = () => {
    drawWave(part(".wave"), pcm);
    drawMel(part(".mel"), pcm, rate);
    if (tokens) drawStrip(part(".strip"), tokens);
  };
  drawings.push(draw);
  draw();
  card.querySelectorAll("canvas").forEach((canvas) => canvas.addEventListener("click", playFrom));
  if (tokens) {
    player.addEventListener("timeupdate", () => {
      const frame = Math.min(tokens.frames - 1, Math.floor(player.currentTime * tokens.frame_rate));
      const codes = tokens.codes.slice(frame * tokens.levels, (frame + 1) * tokens.levels);
      part(".code").textContent = `frame ${frame}: ${[...codes].map((code) => `<${code}>`).join(" ")}`;
    });
  } else {
    part(".strip").remove();
    part(".code").remove();
  }
  addDownload(part(".downloads"), "sound (.wav)", file, `${title}.wav`);
  return card;
}

function addDownload(row, label, url, name) {
  const link = Object.assign(document.createElement("a"), { href: url, download: name, textContent: label });
  link.className = "button";
  row.append(link);
}

function tokenFile(codec, tokens) {
  const shape = codec.levels === 1 ? [tokens.frames] : [tokens.frames, codec.levels];
  return URL.createObjectURL(writeNpz({
    codes: { dtype: "<i4", shape, data: tokens.codes },
    sample_rate: { dtype: "<i4", shape: [], data: Int32Array.of(codec.sample_rate) },
    num_samples: { dtype: "<i8", shape: [], data: BigInt64Array.of(BigInt(tokens.num_samples)) },
    codebook_size: { dtype: "<i4", shape: [], data: Int32Array.of(codec.codebook_size) },
    hop: { dtype: "<i4", shape: [], data: Int32Array.of(codec.hop) },
    architecture: textArray(codec.architecture),
    codec: textArray(codec.digest),
  }));
}

function textArray(text) { // numpy's fixed-width Unicode: four bytes a character
  const letters = [...text].map((letter) => letter.codePointAt(0));
  return { dtype: `<U${letters.length}`, shape: [], data: Uint32Array.from(letters) };
}

async function answer(codec, pcm, rate) {
  const begun = performance.now();
  const coded = await encode(codec, pcm, rate);
  const made = await decode(codec, coded);
  const seconds = (performance.now() - begun) / 1000, length = pcm.length / rate;
  const used = new Set(coded.codes).size;
  const facts = `${rateOf(codec.bits_per_second)} · ${coded.frames * coded.levels} tokens, ${used} different · ` +
    `${codec.sample_rate / 1000} kHz · ${(length / seconds).toFixed(1)} x real time`;
  const tokens = { ...coded, frame_rate: codec.frame_rate };
  const card = addCard(codec.name, facts, made, codec.sample_rate, tokens);
  addDownload(card.querySelector(".downloads"), "tokens (.npz)", tokenFile(codec, coded), `${codec.name}.npz`);
  card.dataset.codes = coded.codes.length <= 50000 ? JSON.stringify([...coded.codes]) : "";
}

async function hear({ pcm, rate }, title) {
  if (busy) return;
  busy = true;
  try {
    if (!pcm.length) throw new Error("There is no sound in it.");
    const cut = pcm.length > MAX_SECONDS * rate;
    if (cut) pcm = pcm.slice(0, MAX_SECONDS * rate);
    find("results").replaceChildren();
    drawings.length = 0;
    const length = `${(pcm.length / rate).toFixed(1)} s${cut ? ` (the first ${MAX_SECONDS} of it)` : ""}`;
    addCard(title, `the original · ${length} · ${rate / 1000} kHz · 16-bit ${rateOf(16 * rate)}`, pcm, rate);
    const chosen = known.filter((_, i) => find("choice").querySelectorAll("input")[i].checked);
    for (const codec of chosen) {
      say(`${codec.name} listens …`);
      await answer(codec, pcm, rate);
    }
    say(chosen.length ? "" : "No codec is chosen.", !chosen.length);
  } catch (error) {
    say(error.message || String(error), true);
  } finally {
    busy = false;
  }
}

async function hearFile(file) {
  if (!file) return;
  say(`reading ${file.name} …`);
  try {
    await hear(await readSound(await file.arrayBuffer()), file.name);
  } catch (error) {
    say(`${file.name} cannot be read as sound (${error.message})`, true);
  }
}

let stop = null;
find("record").addEventListener("click", async () => {
  const button = find("record");
  try {
    if (!stop) {
      stop = await record();
      button.textContent = "■ Stop";
      button.classList.add("on");
      return say("listening to the microphone …");
    }
    const finish = stop;
    stop = null;
    button.textContent = "● Record";
    button.classList.remove("on");
    await hear(await finish(), "Recording");
  } catch (error) {
    say(`The microphone cannot be used (${error.message}).`, true);
  }
});
find("file").addEventListener("change", (event) => hearFile(event.target.files[0]));
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  hearFile(event.dataTransfer.files[0]);
});
let voice = null;
find("speech").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = find("text").value.trim(), button = find("speech").querySelector("button");
  if (!text || busy || button.disabled) return;
  button.disabled = true;
  say("the speech LM speaks …");
  try {
    await hear({ pcm: await speak(text), rate: voice.sample_rate }, text);
  } catch (error) {
    say(error.message || String(error), true);
  } finally {
    button.disabled = false;
  }
});
let waiting = 0;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => drawings.forEach((draw) => draw()), 150);
});

try {
  known = await codecs();
  voice = await speech();
  find("speech").hidden = !voice;
  find("where").textContent = where;
  for (const codec of known) {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", checked: true });
    label.append(box, ` ${codec.name} (${rateOf(codec.bits_per_second)})`);
    find("choice").append(label);
  }
  say("ready");
} catch (error) {
  say(`The codecs cannot be reached (${error.message}).`, true);
}
