// Text to token ids and back: GPT-2's byte-pair encoding, and the compact vocabulary cut from it, as in tokenizer.py.

// What \s means to tokenizer.py; JavaScript's \s has U+FEFF besides, and lacks U+0085.
const WHITESPACE = String.raw`\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000`;
const GPT2_PIECE = new RegExp(
  String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^${WHITESPACE}\p{L}\p{N}]+` +
    String.raw`|[${WHITESPACE}]+$|[${WHITESPACE}]+(?![^${WHITESPACE}])|[${WHITESPACE}]`,
  "gu",
);

class Tokenizer {
  // merges: GPT-2's table, a merge a line. kept: GPT-2's ids of the compact vocabulary, or null for all of them.
  constructor(merges, kept) {
    Object.assign(this, byte_letters());
    // GPT-2's tokens in letters for bytes: single bytes, the merges in order, end-of-text.
    this.spelled = [...this.in_order, ...merges.split("\n").map((line) => line.replace(" ", "")), ""];
    this.gpt2_id = new Map(this.spelled.map((token, id) => [token, id]));
    this.kept = kept ?? this.spelled.map((_, id) => id);
    this.own_id = new Map(this.kept.map((id, own) => [id, own]));
    this.vocab_size = this.kept.length;
    this.end_of_text = this.kept.length - 1;
    this.known = new Map(); // pieces met before
  }

  // Token ids of any text. A lone surrogate becomes U+FFFD.
  encode(text) {
    const ids = [];
    for (const [piece] of text.matchAll(GPT2_PIECE)) for (const id of this.encode_piece(piece)) ids.push(id);
    return ids;
  }

  encode_piece(piece) {
    let ids = this.known.get(piece);
    if (!ids) {
      const letters = Array.from(new TextEncoder().encode(piece), (byte) => this.letter_of_byte[byte]);
      ids = this.merge(letters).flatMap((id) => this.own_ids(id));
      if (this.known.size > 50_000) this.known.clear();
      if (piece.length <= 32) this.known.set(piece, ids);
    }
    return ids;
  }

  // A token of GPT-2 in this vocabulary: itself, or its bytes, which have the same ids in both.
  own_ids(gpt2_id) {
    const own = this.own_id.get(gpt2_id);
    return own !== undefined ? [own] : Array.from(this.spelled[gpt2_id], (letter) => this.gpt2_id.get(letter));
  }

  // The bytes of a token; end-of-text has none.
  bytes(id) {
    return Uint8Array.from(this.spelled[this.kept[id]], (letter) => this.byte_of_letter.get(letter));
  }

  // Join the two neighbours whose union comes first in the table, the leftmost of equals, until no union is in it.
  merge(parts) {
    const rank = (place) => this.gpt2_id.get(parts[place] + parts[place + 1]) ?? Infinity;
    const ranks = parts.slice(1).map((_, place) => rank(place));
    for (;;) {
      let best = 0;
      for (let place = 1; place < ranks.length; place++) if (ranks[place] < ranks[best]) best = place;
      if (!(ranks[best] < Infinity)) return parts.map((part) => this.gpt2_id.get(part));
      parts.splice(best, 2, parts[best] + parts[best + 1]);
      ranks.splice(best, 1);
      if (best < ranks.length) ranks[best] = rank(best);
      if (best > 0) ranks[best - 1] = rank(best - 1);
    }
  }

  // Text of tokens; bytes that are not UTF-8, such as half a character, become U+FFFD.
  decode(ids) {
    const bytes = ids.flatMap((id) => [...this.bytes(id)]);
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }

  // What each token adds to the text: nothing, where it ends within a character.
  decode_each(ids) {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    return ids.map((id, place) => utf8.decode(this.bytes(id), { stream: place < ids.length - 1 }));
  }
}

// The letters that GPT-2's table writes for bytes: printable Latin-1 for itself, U+0100 + n for the n-th other byte.
function byte_letters() {
  const printable = [], others = [];
  for (let byte = 0; byte < 256; byte++) {
    const shown = (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae;
    (shown ? printable : others).push(byte);
  }
  const letter_of_byte = [];
  for (const byte of printable) letter_of_byte[byte] = String.fromCharCode(byte);
  others.forEach((byte, n) => (letter_of_byte[byte] = String.fromCharCode(0x100 + n)));
  const byte_of_letter = new Map(letter_of_byte.map((letter, byte) => [letter, byte]));
  return { letter_of_byte, byte_of_letter, in_order: [...printable, ...others].map((byte) => letter_of_byte[byte]) };
}
