// What stm wrote into an ONNX file of itself. ONNX Runtime's JavaScript does not show a model's metadata, so the file's
// outermost message is walked here: field 14 of ModelProto is a list of pairs of texts; all else is stepped over.
export function metadata(bytes) {
  const text = new TextDecoder("utf-8", { fatal: true }), out = {};
  const walk = (from, to, tell) => {
    let at = from;
    const number = () => {
      let value = 0, scale = 1;
      for (;;) {
        const byte = bytes[at++];
        if (byte === undefined || scale > 2 ** 49) throw new Error("not an ONNX file");
        value += (byte & 127) * scale;
        if (byte < 128) return value;
        scale *= 128;
      }
    };
    while (at < to) {
      const key = number(), field = Math.floor(key / 8), kind = key % 8;
      if (kind === 0) number();
      else if (kind === 1) at += 8;
      else if (kind === 5) at += 4;
      else if (kind === 2) {
        const size = number();
        if (at + size > to) throw new Error("not an ONNX file");
        tell(field, at, at + size);
        at += size;
      } else throw new Error("not an ONNX file");
    }
  };
  walk(0, bytes.length, (field, from, to) => {
    if (field !== 14) return;
    const pair = {};
    walk(from, to, (part, start, end) => { pair[part] = text.decode(bytes.subarray(start, end)); });
    if (pair[1]?.startsWith("stm.")) out[pair[1]] = JSON.parse(pair[2]);
  });
  if (!out["stm.schedule"]) throw new Error("not an ONNX file that stm export wrote");
  return out;
}
