// The tokens of a text, coloured by how surprised the model was, with a cursor that keys and clicks move.

const MOST_NATS = 6; // what is shown in full colour

class TextView {
  // chosen(place): the cursor was moved there. alternatives(place): an element to show beside a token.
  constructor(box, hover, chosen, alternatives) {
    Object.assign(this, { box, hover, chosen, alternatives, spans: [], cursor: null, moved: false });
    box.addEventListener("click", (event) => {
      const place = this.place_of(event.target);
      this.choose(place);
      if (event.pointerType && event.pointerType !== "mouse") this.point_at(place, true);
    });
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse") this.point_at(this.place_of(event.target));
    });
    for (const part of [box, hover]) part.addEventListener("pointerleave", () => this.hide_soon());
    hover.addEventListener("pointerenter", () => clearTimeout(this.hiding));
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
    document.addEventListener("click", ({ target }) => !box.contains(target) && !hover.contains(target) && this.hide());
  }

  // Bring the spans up to what was read; those that say the same are left alone, because a story is shown as it grows.
  show(reading) {
    const { tokens, nats, expected, tokenizer } = reading, pieces = tokenizer.decode_each(tokens);
    while (this.spans.length > tokens.length) this.spans.pop().remove();
    tokens.forEach((token, place) => {
      const shown = this.spans[place] ?? this.add(place), said = `${token} ${nats[place]} ${pieces[place]}`;
      if (shown.said === said) return;
      shown.said = said;
      const text = token === tokenizer.end_of_text ? (place === 0 ? "⊢" : "∎") : pieces[place] || "·";
      shown.textContent = text;
      shown.className = token === tokenizer.end_of_text || !pieces[place] ? "mute" : expected[place] ? "" : "unread";
      shown.classList.toggle("return", pieces[place].includes("\n"));
      shade(shown, nats[place] === null ? 0 : nats[place] / MOST_NATS);
      const name = token !== tokenizer.end_of_text ? quoted(text) : place === 0 ? "the beginning" : "the end";
      const surprise = nats[place] === null ? "not predicted" : `${nats[place].toFixed(2)} nats`;
      shown.setAttribute("aria-label", `${name}, ${surprise}`);
    });
    this.mark(null);
    if (this.cursor >= tokens.length) this.cursor = null;
    if (this.cursor === null) this.moved = false;
  }

  // Mark the token that the storyteller would never say, if there is one.
  mark(place) {
    for (const shown of this.spans) {
      const never = shown === this.spans[place];
      shown.classList.toggle("never", never);
      shown.title = never ? "The storyteller would never say this here" : "";
    }
  }

  add(place) {
    const made = element("span", { role: "option", id: `token-${place}`, "aria-selected": "false" });
    this.spans.push(made);
    this.box.append(made);
    return made;
  }

  // moved: by somebody, and not by the page.
  choose(place, moved = true) {
    if (place === null || !this.spans[place]) return;
    this.moved = moved;
    this.spans[this.cursor]?.setAttribute("aria-selected", "false");
    this.cursor = place;
    this.spans[place].setAttribute("aria-selected", "true");
    this.box.setAttribute("aria-activedescendant", `token-${place}`);
    this.chosen(place);
  }

  key(event) {
    const last = this.spans.length - 1, at = this.cursor ?? last;
    const moves = {
      ArrowLeft: () => at - 1,
      ArrowRight: () => at + 1,
      ArrowUp: () => this.in_line(at, -1),
      ArrowDown: () => this.in_line(at, 1),
      Home: () => 0,
      End: () => last,
    };
    if (event.key === "Enter") $("instead").querySelector("button")?.focus();
    else if (!moves[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    else {
      this.choose(Math.max(0, Math.min(last, moves[event.key]())));
      this.spans[this.cursor]?.scrollIntoView({ block: "nearest" });
    }
    event.preventDefault();
  }

  // The token nearest above (-1) or below (1).
  in_line(at, direction) {
    const here = this.spans[at].getClientRects()[0];
    let line = null, best = at, distance = Infinity;
    for (let place = at + direction; this.spans[place]; place += direction) {
      const there = this.spans[place].getClientRects()[0];
      if (!there || Math.abs(there.top - here.top) < there.height / 2) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) > there.height / 2) break;
      if (Math.abs(there.left - here.left) < distance) [best, distance] = [place, Math.abs(there.left - here.left)];
    }
    return best;
  }

  place_of(target) {
    const place = this.spans.indexOf(target);
    return place < 0 ? null : place;
  }

  // Show the alternatives beside a token: below it, or above where there is more room. Who touches the screen sees
  // nothing else change, and is shown the way to what is below.
  point_at(place, touched = false) {
    clearTimeout(this.hiding);
    const beside = place === null ? null : this.alternatives(place);
    if (place === null || !(beside || touched)) return this.hide_soon();
    const down = () => {
      this.hide();
      $("inside").scrollIntoView();
    };
    const way = touched ? [element("button", { click: down }, "Look inside")] : [];
    this.hover.replaceChildren(element("b", {}, this.spans[place].getAttribute("aria-label")), ...way, beside ?? "");
    this.hover.hidden = false;
    const rect = this.spans[place].getClientRects()[0], { clientWidth, clientHeight } = document.documentElement;
    const below = clientHeight - rect.bottom;
    this.hover.style.maxHeight = `${Math.max(below, rect.top) - 8}px`;
    const { offsetWidth, offsetHeight } = this.hover;
    const top = below < offsetHeight && rect.top > below ? rect.top - offsetHeight : rect.bottom;
    this.hover.style.left = `${Math.max(8, Math.min(rect.left, clientWidth - offsetWidth - 8)) + scrollX}px`;
    this.hover.style.top = `${Math.max(0, top + scrollY)}px`;
  }

  hide_soon() {
    clearTimeout(this.hiding);
    this.hiding = setTimeout(() => this.hide(), 200);
  }

  hide() {
    this.hover.hidden = true;
  }
}
