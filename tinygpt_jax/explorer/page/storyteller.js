// The storyteller of data/grammar.py, for the exact distribution of the next token after any beginning of a story.

class Storyteller {
  // template and words: as grammar.py describes them.
  constructor(template, words) {
    this.words = new Map(Object.entries(words).map(([slot, spec]) => [slot, word_lists(spec, words)]));
    this.start = link(parse(template), null);
  }

  // How a text may go on: [{ text, p }], each as far as `enough(text)` wants it or the story goes, with its
  // probability; end is whether the story is over there. None where no story begins with this text.
  continuations(beginning, enough) {
    const found = [];
    // rest: what of the beginning is still to be told; after it, told is what was told besides.
    const tell = (node, said, rest, told, p) => {
      if (node === null || (rest === "" && enough(told))) {
        if (rest === "") found.push({ text: told, p, end: node === null });
        return;
      }
      const alternatives = node.texts ?? (said[node.slot] ? [said[node.slot]] : this.words.get(node.slot)(said));
      alternatives.forEach((text, choice) => {
        const now = node.slot ? { ...said, [node.slot]: text } : said;
        const next = node.texts ? node.following[choice] : node.following;
        // No alternative begins another, so the beginning follows at most one of them whole.
        if (rest.startsWith(text)) tell(next, now, rest.slice(text.length), told, p);
        else if (text.startsWith(rest)) tell(next, now, "", told + text.slice(rest.length), p / alternatives.length);
      });
    };
    tell(this.start, {}, beginning, "", 1);
    // What was chosen within the beginning is certain: where it stops within a choice, only some of them are left.
    const total = found.reduce((sum, { p }) => sum + p, 0);
    return found.map((one) => ({ ...one, p: one.p / total }));
  }

  // The exact distribution of the token after `tokens`, the first of which is end-of-text: a Map from token to
  // probability, empty where no story is told in these tokens.
  next_token(tokens, tokenizer) {
    const told = tokens.slice(1), beginning = tokenizer.decode(told), distribution = new Map();
    // A token is no longer than the pieces that GPT-2's pattern cuts, and no piece goes on over a space.
    const enough = (text) => /\S\s/.test(text);
    for (const { text, p, end } of this.continuations(beginning, enough)) {
      const ids = tokenizer.encode(beginning + text);
      if (end) ids.push(tokenizer.end_of_text);
      if (told.every((token, place) => ids[place] === token) && ids.length > told.length) {
        const next = ids[told.length];
        distribution.set(next, (distribution.get(next) ?? 0) + p);
      }
    }
    const total = [...distribution.values()].reduce((sum, p) => sum + p, 0);
    for (const [token, p] of distribution) distribution.set(token, p / total);
    return distribution;
  }
}

// KL(true || model) in nats: what is lost by expecting the model's probabilities. losses: -ln of them, for each token.
function divergence(distribution, losses) {
  let nats = 0;
  for (const [token, p] of distribution) nats += p * (Math.log(p) + losses[token]);
  return Math.max(0, nats);
}

// A function of what was said: the words that a slot may take.
function word_lists(spec, words) {
  if (typeof spec === "string") return () => spec.split(", ");
  const [parent, ...lists] = spec, keys = words[parent].split(", ");
  const by_word = new Map(keys.map((word, place) => [word, lists[place].split(", ")]));
  return (said) => by_word.get(said[parent]);
}

// The template as a list of texts, {slot}s, and brackets as lists of such lists.
function parse(template) {
  const tokens = [...template.match(/[[\]|]|\{\w+\}|[^[\]|{}]+/g), "]"].values();
  const options = () => {
    const found = [[]];
    for (const token of tokens) {
      if (token === "]") break;
      if (token === "|") found.push([]);
      else found.at(-1).push(token === "[" ? options() : token);
    }
    return found;
  };
  return options()[0];
}

// The graph that tells `items` and goes on at `following`: { texts, following: [...] } or { slot, following }.
function link(items, following) {
  return items.reduceRight((next, item) => {
    if (Array.isArray(item)) {
      return { texts: item.map(([text]) => text), following: item.map(([, ...rest]) => link(rest, next)) };
    }
    if (item[0] === "{") return { slot: item.slice(1, -1), following: next };
    return { texts: [item], following: [next] };
  }, following);
}
