// Opening the page: its model, its listeners, and a first story.

async function start() {
  const explorer = (globalThis.explorer = new Explorer(facts_of($("facts").textContent)));
  const last = explorer.facts.checkpoints.length - 1;
  $("checkpoint").max = $("checkpoint").value = last;
  $("watch").hidden = last === 0;
  await explorer.open(last);
  document.querySelector("main").hidden = false;
  $("prompt").value = "Once upon a time";
  explorer.choose_tab = make_tabs((mode) => explorer.turn_to(mode).catch(complain));
  const on = (id, event, act) => $(id).addEventListener(event, () => Promise.resolve(act()).catch(complain));
  on("write", "click", () => explorer.write());
  on("step", "click", () => explorer.go_on(1));
  on("go-on", "click", () => explorer.go_on());
  on("read", "click", () => explorer.read());
  on("checkpoint", "input", () => explorer.watch($("checkpoint").valueAsNumber));
  for (const id of SETTINGS) on(id, "change", () => settings_given());
  for (const id of ["temperature", "top_k", "top_p"]) on(id, "change", () => explorer.show_next());
  for (const button of document.querySelectorAll(".stop")) button.addEventListener("click", () => explorer.stop());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => explorer.look());
  await explorer.write();
}

function facts_of(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new DamageError();
  }
}

function complain(error) {
  $("problem").textContent = error instanceof DamageError ? error.message : `Something went wrong: ${error.message}`;
  $("problem").hidden = false;
  $("about").hidden = document.querySelector("main").hidden; // it would say for ever that the model is being opened
  console.error(error);
}

start().catch(complain);
