// Classify a photograph in Node: npm ci, then node predict.mjs MODEL.onnx PHOTO
// The model is one that `stm export MODEL --format onnx --with-preprocessing` wrote: it takes bytes, gives probabilities.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import sharp from "sharp";
import { metadata } from "../web/metadata.js";

const [model, photo] = process.argv.slice(2);
if (!photo) {
  console.error("usage: node predict.mjs MODEL.onnx PHOTO");
  process.exit(2);
}
const file = await readFile(model);
const about = metadata(file);
const { resize, crop } = about["stm.preprocessing"], channels = about["stm.model"].in_chans;
const { name: input, normalised, shape } = about["stm.input"];
if (normalised || ![null, 1].includes(shape[0]) || about["stm.output"] !== "probabilities") {
  console.error(`${model} does not give probabilities for one image of bytes: export it with --with-preprocessing alone`);
  process.exit(2);
}
const { width, height } = await sharp(photo).metadata();
const scale = resize / Math.min(width, height);
const wide = Math.trunc(width * scale), high = Math.trunc(height * scale);
const { data } = await sharp(photo).removeAlpha().toColourspace(channels === 1 ? "b-w" : "srgb")
  .resize(wide, high, { kernel: "cubic", fit: "fill", fastShrinkOnLoad: false }).raw().toBuffer({ resolveWithObject: true });
const even = x => x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x); // as Python rounds: halves to even
const left = even((wide - crop) / 2), top = even((high - crop) / 2);
const pixels = new Uint8Array(crop * crop * channels);
for (let y = 0; y < crop; y++) {
  const from = ((top + y) * wide + left) * channels;
  pixels.set(data.subarray(from, from + crop * channels), y * crop * channels);
}
const session = await ort.InferenceSession.create(file);
const images = new ort.Tensor("uint8", pixels, [1, crop, crop, channels]);
const { probabilities } = await session.run({ [input]: images });
const ranked = [...probabilities.data].map((share, index) => [share, index]).sort((a, b) => b[0] - a[0]);
for (const [share, index] of ranked.slice(0, 5)) {
  console.log(`${(100 * share).toFixed(1).padStart(5)}%  ${about["stm.label_names"]?.[index] ?? `class ${index}`}`);
}
process.exit(0); // ONNX Runtime's threads would keep the process
