// The versions of a story, in the order in which they were begun.
//
// A version's tokens grow while it is written, and nothing else changes them: to read it, halfway or with another
// checkpoint, loses nothing.

class Story {
  constructor() {
    this.versions = []; // { name, tokens, prompt: how many of them were given, step, untouched }
    this.number = -1; // of the version that is shown
  }

  get current() {
    return this.versions[this.number] ?? null;
  }

  begin(version) {
    this.versions.push(version);
    this.number = this.versions.length - 1;
  }

  // Make room for what is written anew: what was only written, from a prompt and a seed, can be written again.
  clear_untouched() {
    this.versions = this.versions.filter(({ untouched }) => !untouched);
    this.number = this.versions.length - 1;
  }

  // Have a text among the versions, unless it is there.
  keep(version) {
    const same = ({ tokens }) => tokens.length === version.tokens.length && tokens.every((token, place) => token === version.tokens[place]);
    if (!this.versions.some(same)) this.begin(version);
  }
}
