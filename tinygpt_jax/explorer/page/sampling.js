// How the next token is chosen: the rules of generation/sampling.py, in their order, on the logits of one position.

// Logits after temperature, top-k and top-p; -Infinity for what is left out. At temperature 0 the likeliest is left.
function after_rules(logits, { temperature, top_k, top_p }) {
  if (temperature === 0) {
    const likeliest = argmax(logits);
    return logits.map((logit, token) => (token === likeliest ? 0 : -Infinity));
  }
  const scaled = scale_by_temperature(logits, temperature);
  return keep_top_p(top_k > 0 ? keep_top_k(scaled, top_k) : scaled, top_p);
}

// z / T (Ackley et al. 1985), shifted so that the largest is 0.
function scale_by_temperature(logits, temperature) {
  const largest = maximum(logits);
  return logits.map((logit) => (logit - largest) / Math.max(temperature, 1e-30));
}

// -Infinity for all but the k largest logits (Fan et al. 2018), and those equal to the k-th.
function keep_top_k(logits, k) {
  if (k >= logits.length) return logits;
  const smallest = Float32Array.from(logits).sort()[logits.length - k];
  return logits.map((logit) => (logit >= smallest ? logit : -Infinity));
}

// -Infinity for all but the nucleus: the fewest likeliest tokens whose probabilities add up to p or more, and those as
// likely as the last of them (Holtzman et al. 2020, 3.1).
function keep_top_p(logits, p) {
  if (p >= 1) return logits;
  const probabilities = softmax(logits), falling = Float32Array.from(probabilities).sort().reverse();
  let total = 0, last = 0;
  for (; last < falling.length; last++) if ((total += falling[last]) >= p) break;
  return logits.map((logit, token) => (probabilities[token] >= falling[last] ? logit : -Infinity));
}

// The token that a number from 0 to 1 falls on, where each has softmax(logits) of the way.
function categorical(number, logits) {
  const probabilities = softmax(logits);
  let total = 0, chosen = 0;
  for (let token = 0; token < logits.length; token++) {
    if (probabilities[token] === 0) continue;
    chosen = token; // also where rounding leaves the total below the number
    if ((total += probabilities[token]) > number) break;
  }
  return chosen;
}

// A number from 0 to 1 that depends on the seed and the place in the text alone, so that a branch, a step and a second
// try find the same ones. (Two rounds of the 32-bit finaliser of MurmurHash3, Appleby 2011.)
function uniform(seed, place) {
  let hash = mix(seed ^ 0x9e3779b9);
  hash = mix(hash + Math.imul(place, 0x85ebca6b) + 1);
  return mix(hash ^ seed) / 2 ** 32;
}

function mix(hash) {
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

function argmax(numbers) {
  let best = 0;
  for (let i = 1; i < numbers.length; i++) if (numbers[i] > numbers[best]) best = i;
  return best;
}

// The largest few, the largest first, and of equals the first: [{ token, value }].
function largest_few(numbers, count) {
  const found = [];
  for (let token = 0; token < numbers.length; token++) {
    const value = numbers[token];
    if (found.length === count && value <= found[count - 1].value) continue;
    let place = found.length;
    while (place > 0 && found[place - 1].value < value) place--;
    found.splice(place, 0, { token, value });
    found.length = Math.min(found.length, count);
  }
  return found;
}
