// Runs before the page is there: says so where the rest of the file is missing or damaged, and so did not run.

addEventListener("DOMContentLoaded", () => {
  if (globalThis.explorer) return;
  document.getElementById("about").textContent =
    "This file is damaged or incomplete: copy or download it again, or make it again with experiments.explorer.";
});
