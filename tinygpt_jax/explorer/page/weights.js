// The parameters of a checkpoint, from the text in the page that weights.py wrote.

class DamageError extends Error {
  constructor() {
    super("This file is damaged or incomplete: copy or download it again, or make it again with experiments.explorer.");
  }
}

// text: gzip in base64. parameters: [{ name, shape, dtype }] in the order of the bytes. Returns a Map of float32 arrays.
async function unpack(text, parameters) {
  const bytes = await gunzip(text), params = new Map();
  let at = 0;
  for (const { name, shape, dtype } of parameters) {
    const size = shape.reduce((product, n) => product * n, 1), rows = shape.length > 1 ? shape[0] : 1;
    if (dtype === "int8") {
      const scales = new Float32Array(bytes.slice(at, (at += 4 * rows)).buffer);
      const steps = new Int8Array(bytes.buffer, at, size);
      const values = new Float32Array(size), columns = size / rows;
      for (let i = 0; i < size; i++) values[i] = steps[i] * scales[Math.floor(i / columns)];
      params.set(name, values);
      at += size;
    } else {
      const values = new Float32Array(size);
      for (let i = 0; i < size; i++) values[i] = FLOAT16[bytes[at + i] | (bytes[at + size + i] << 8)];
      params.set(name, values);
      at += 2 * size;
    }
  }
  if (at !== bytes.length) throw new DamageError();
  return params;
}

async function gunzip(text) {
  try {
    const letters = atob(text), packed = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch (error) {
    console.error(error);
    throw new DamageError(); // the browser's own words are of base64, or of a fetch that failed
  }
}

// What each of the 65,536 patterns of float16 means (IEEE 754-2008): sign, five bits of exponent, ten of fraction.
const FLOAT16 = Float32Array.from({ length: 65_536 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
});
