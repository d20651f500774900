// The page of index.html: reads model.onnx beside it, takes a photograph, shows what the model sees and says.
import { metadata } from "./metadata.js";

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
const SHOWN = 672; // pixels of the picture's longer side on the screen, at least
const at = id => document.getElementById(id);
const even = x => x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x); // as Python rounds: halves to even
const size = value => Array.isArray(value) ? value : [value, value]; // height and width
let model = null, seen = null;

function say(text) { at("status").textContent = text; }

function refuse(text) {
  say("");
  at("error").textContent = text;
  at("error").hidden = !text;
}

const painted = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));

// Pillow's resampling: the filter is as wide as the step, so that shrinking averages. Bytes between the two passes too.
const FILTERS = {
  bicubic: [2, x => x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0],
  bilinear: [1, x => x < 1 ? 1 - x : 0],
  nearest: [0, null],
};

function resampled(from, width, height, wide, high, filter) {
  const pass = (source, n, lines, to, step, row, out, outStep, outRow) => {
    const [radius, weigh] = FILTERS[filter], ratio = n / to, wider = Math.max(1, ratio);
    for (let i = 0; i < to; i++) {
      const center = (i + 0.5) * ratio, first = radius ? Math.max(0, Math.trunc(center - radius * wider + 0.5)) : Math.trunc(center);
      const last = radius ? Math.min(n, Math.trunc(center + radius * wider + 0.5)) : first + 1, weights = [];
      let sum = 0;
      for (let j = first; j < last; j++) {
        const weight = radius ? weigh(Math.abs((j - center + 0.5) / wider)) : 1;
        weights.push(weight);
        sum += weight;
      }
      for (let line = 0; line < lines; line++) {
        for (let colour = 0; colour < 3; colour++) {
          let value = 0;
          for (let j = first; j < last; j++) value += weights[j - first] * source[line * row + j * step + colour];
          out[line * outRow + i * outStep + colour] = Math.round(value / sum); // a clamped array keeps 0 to 255
        }
      }
    }
    return out;
  };
  const half = pass(from, width, height, wide, 4, 4 * width, new Uint8ClampedArray(4 * wide * height), 4, 4 * wide);
  return pass(half, height, wide, high, 4 * wide, 4, new Uint8ClampedArray(4 * wide * high), 4 * wide, 4);
}

function pixelsOf(image, resize, crop, filter) {
  const canvas = new OffscreenCanvas(image.width, image.height), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const from = pen.getImageData(0, 0, image.width, image.height).data;
  const [high, wide] = scaled(image, resize), [down, across] = size(crop);
  const all = resampled(from, image.width, image.height, wide, high, filter);
  const left = even((wide - across) / 2), top = even((high - down) / 2);
  const out = new Uint8Array(3 * down * across);
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      for (let c = 0; c < 3; c++) out[3 * (y * across + x) + c] = all[4 * ((top + y) * wide + left + x) + c];
    }
  }
  return out;
}

function scaled(image, resize) {
  if (Array.isArray(resize)) {
    const ratio = Math.min(image.height / resize[0], image.width / resize[1]);
    return [even(image.height / ratio), even(image.width / ratio)];
  }
  const ratio = resize / Math.min(image.width, image.height);
  return image.width <= image.height ? [Math.trunc(image.height * ratio), resize] : [resize, Math.trunc(image.width * ratio)];
}

function inputOf(pixels) {
  const prep = model.about["stm.preprocessing"], channels = prep.mean.length, [down, across] = size(prep.crop);
  const value = (at, c) => channels === 1 // Pillow's gray
    ? (pixels[3 * at] * 19595 + pixels[3 * at + 1] * 38470 + pixels[3 * at + 2] * 7471 + 32768) >> 16 : pixels[3 * at + c];
  const n = down * across, { normalised } = model.about["stm.input"];
  const out = normalised ? new Float32Array(channels * n) : new Uint8Array(channels * n);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < channels; c++) {
      if (normalised) out[c * n + i] = (value(i, c) / 255 - prep.mean[c]) / prep.std[c];
      else out[i * channels + c] = value(i, c);
    }
  }
  return new model.ort.Tensor(normalised ? "float32" : "uint8", out, normalised ? [1, channels, down, across] : [1, down, across, channels]);
}

function softmax(logits) {
  const most = Math.max(...logits), powers = logits.map(value => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(value => value / sum);
}

// For each block the patches of each token that enters it, by replaying the schedule.
function groupsPerBlock(about) {
  const { tokens, class_token, steps } = about["stm.schedule"], classes = [class_token].flat();
  let patch = 0, groups = Array.from({ length: tokens }, (_, i) => classes.includes(i) ? [] : [patch++]);
  const blocks = [groups], byBlock = Object.fromEntries(steps.map(step => [step.after, step.absorb]));
  for (let block = 1; block < about["stm.model"].depth; block++) {
    const absorb = byBlock[block - 1] ?? [], next = groups.map(group => [...group]), gone = new Set();
    for (const [from, to] of absorb) {
      next[to].push(...groups[from]);
      gone.add(from);
    }
    groups = next.filter((_, i) => !gone.has(i));
    blocks.push(groups);
  }
  return blocks;
}

function draw(block) {
  const { image, prep } = seen, [down, across] = size(prep.crop), times = Math.ceil(SHOWN / Math.max(down, across));
  const canvas = at("picture"), pen = canvas.getContext("2d");
  canvas.width = across * times;
  canvas.height = down * times;
  const [high, wide] = scaled(image, prep.resize).map(side => side * times);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, Math.round((canvas.width - wide) / 2), Math.round((canvas.height - high) / 2), wide, high);
  const { patch, stride } = model.about["stm.model"], columns = Math.floor((across - patch) / stride) + 1;
  const rows = Math.floor((down - patch) / stride) + 1, cell = stride * times;
  const groups = model.groups[block], owner = [], joined = groups.filter(group => group.length > 1);
  groups.forEach((group, token) => group.forEach(each => { owner[each] = token; }));
  const lines = new Path2D(), single = new Path2D();
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const own = owner[y * columns + x], alone = groups[own].length === 1;
      for (const [dx, dy] of [[1, 0], [0, 1]]) {
        if (x + dx >= columns || y + dy >= rows) continue;
        const other = owner[(y + dy) * columns + x + dx];
        if (own === other) continue;
        const path = alone && groups[other].length === 1 ? single : lines;
        path.moveTo((x + dx) * cell, (y + dy) * cell);
        path.lineTo((x + 1) * cell, (y + 1) * cell);
      }
    }
  }
  // Light on dark, so that a line shows on every picture.
  pen.lineCap = "round";
  for (const [path, width, colour] of [[single, 1, "rgb(255 255 255 / .35)"], [lines, 5, "rgb(0 0 0 / .55)"], [lines, 2.2, "#fff"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.stroke(path);
  }
  const left = groups.filter(group => group.length).length, inside = joined.reduce((sum, group) => sum + group.length, 0);
  at("at").textContent = `${block + 1} of ${model.groups.length}`;
  const words = joined.length
    ? `Block ${block + 1} sees ${left} tokens for ${rows * columns} patches: ${inside} patches became ${joined.length} tokens, each within one white line.`
    : `Block ${block + 1} sees every one of the ${rows * columns} patches: nothing is merged before it.`;
  at("caption").textContent = words;
  canvas.setAttribute("aria-label", `The part of the photograph that the model sees. ${words}`);
}

async function look(file) {
  if (!model || !file) return;
  refuse("");
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    return refuse(`${file.name || "What was given"} is not an image that this browser can read: choose a JPEG, PNG or WebP.`);
  }
  say("Looking");
  await painted();
  const prep = model.about["stm.preprocessing"], started = performance.now();
  const filter = FILTERS[prep.interpolation] ? prep.interpolation : "bicubic";
  const input = inputOf(pixelsOf(image, prep.resize, prep.crop, filter)), ready = performance.now();
  const output = await model.session.run({ [model.about["stm.input"].name]: input }), done = performance.now();
  const values = Array.from(output[model.about["stm.output"]].data);
  const shares = model.about["stm.output"] === "probabilities" ? values : softmax(values);
  const best = shares.map((share, index) => [share, index]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  at("classes").replaceChildren(...best.map(([share, index]) => {
    const item = document.createElement("li"), name = document.createElement("span"), text = document.createElement("span");
    const track = document.createElement("div"), bar = document.createElement("div");
    name.textContent = model.about["stm.label_names"]?.[index] ?? `class ${index}`;
    text.textContent = `${(100 * share).toFixed(1)}%`;
    [text.className, track.className, bar.className] = ["share", "track", "bar"];
    bar.style.width = `${100 * share}%`;
    track.append(bar);
    item.append(name, text, track);
    return item;
  }));
  at("time").textContent = `${(done - ready).toFixed(0)} ms in the model, ${(ready - started).toFixed(0)} ms before it, on this machine.`;
  document.body.dataset.ms = String(Math.round(done - ready));
  seen = { image, prep };
  at("result").hidden = false;
  at("block").value = String(model.groups.length - 1);
  draw(model.groups.length - 1);
  say(`Most likely ${at("classes").firstChild.firstChild.textContent}.`);
}

function facts() {
  const { about, groups, bytes } = model, recipe = about["stm.recipe"], { depth } = about["stm.model"];
  const layers = about["stm.schedule"].tokens_per_block.reduce((a, b) => a + b), dense = depth * about["stm.schedule"].tokens;
  const rows = [
    ["Model", about["stm.source"].repo?.split("/").pop() ?? about["stm.source"].file ?? "ViM", `${depth} blocks, ${(bytes / 1e6).toFixed(1)} MB`],
    ["Patches at the end", `${groups.at(-1).filter(group => group.length).length} of ${groups[0].filter(group => group.length).length}`, "tokens that the last block sees"],
    ["Work saved", `${(100 * (1 - layers / dense)).toFixed(0)}%`, recipe ? `of the token-layers, ${recipe.method}` : "a dense model"],
  ];
  at("facts").replaceChildren(...rows.map(([head, value, note]) => {
    const box = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd"), small = document.createElement("small");
    [dt.textContent, dd.textContent, small.textContent] = [head, value, note];
    dd.append(small);
    box.append(dt, dd);
    return box;
  }));
  at("facts").hidden = false;
}

// Why a photograph cannot go through this export, or no classes come out of it; undefined if nothing is in the way.
function reason(about) {
  const { shape, normalised } = about["stm.input"], channels = shape[normalised ? 1 : 3], output = [about["stm.output"]].flat();
  if (output[0].startsWith("features")) return "gives features and no classes: export it without --features";
  if ((shape[0] ?? 1) !== 1) return `takes batches of ${shape[0]} images: export it without --batch-size`;
  if (channels !== 1 && channels !== 3) return `takes images of ${channels} channels, and a photograph has 3`;
}

async function load() {
  let ort, bytes, about, session;
  try {
    ort = await import(RUNTIME);
  } catch {
    return refuse("ONNX Runtime is not here: run npm ci in this folder, and open the page through python -m http.server.");
  }
  const name = "model.onnx";
  try {
    const answer = await fetch(name, { cache: "no-cache" }); // it may have been exported anew
    if (!answer.ok) throw new Error();
    bytes = new Uint8Array(await answer.arrayBuffer());
  } catch {
    return refuse(`${name} is not beside this page: write it with stm export FOLDER --format onnx --out ${name}.`);
  }
  try {
    about = metadata(bytes);
  } catch {
    return refuse(`${name} is not an ONNX file that stm export wrote: write it with stm export FOLDER --format onnx --out ${name}.`);
  }
  const unfit = reason(about);
  if (unfit) return refuse(`${name} ${unfit}.`);
  try {
    ort.env.wasm.numThreads = 1; // several need headers that http.server does not send
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    const { name: input, dtype, shape } = about["stm.input"]; // once on nothing: the first run compiles
    const dims = shape.map(each => each ?? 1), n = dims.reduce((a, b) => a * b);
    await session.run({ [input]: new ort.Tensor(dtype, dtype === "uint8" ? new Uint8Array(n) : new Float32Array(n), dims) });
  } catch (error) {
    return refuse(`${name} cannot be run here: ${String(error.message ?? error).split("\n")[0]}`);
  }
  model = { ort, about, session, groups: groupsPerBlock(about), bytes: bytes.length };
  at("block").max = String(model.groups.length - 1);
  at("blocks").hidden = !about["stm.schedule"].steps.length;
  facts();
  at("file").disabled = false;
  document.body.dataset.ready = "yes";
  say("The model is ready.");
}

at("file").addEventListener("change", event => { look(event.target.files[0]); event.target.value = ""; });
at("block").addEventListener("input", event => draw(Number(event.target.value)));
addEventListener("paste", event => look(event.clipboardData?.files[0]));
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, event => { event.preventDefault(); at("drop").classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) addEventListener(kind, () => at("drop").classList.remove("over"));
addEventListener("drop", event => { event.preventDefault(); look(event.dataTransfer.files[0]); });
load();
