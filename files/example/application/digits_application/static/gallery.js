// The last batch run: its figures and its first predictions.

import { INK, SIDE } from "./digit.js";
import { percent } from "./format.js";

const REFRESH_MS = 15_000;
const UNSURE = 0.8; // predictions below are marked

/** Keep the gallery in `section` up to date. */
export function followBatch(section) {
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch("/api/batch");
      if (answer.ok) show(section, await answer.json());
    } catch {
      // The server is restarting; what is shown stays, the next round tries again.
    }
  };
  refresh();
  setInterval(refresh, REFRESH_MS);
  document.addEventListener("visibilitychange", refresh);
}

function show(section, batch) {
  section.querySelector("[data-empty]").hidden = batch.run !== null;
  section.querySelector("dl").hidden = batch.run === null;
  if (batch.run === null) return;
  const figures = {
    run: batch.run,
    rows: batch.rows.toLocaleString(),
    rejected: batch.rejected.toLocaleString(),
    version: batch.model_version ?? "unknown",
    age: age(batch.age_seconds),
  };
  for (const [name, text] of Object.entries(figures)) {
    section.querySelector(`[data-figure="${name}"]`).textContent = text;
  }
  const list = section.querySelector("ol");
  if (list.dataset.run === batch.run) return;
  list.dataset.run = batch.run;
  list.replaceChildren(...batch.items.map(thumbnail));
}

function thumbnail({ id, instance, digit, probability }) {
  const item = document.createElement("li");
  item.title = id;
  item.classList.toggle("unsure", probability < UNSURE);
  const canvas = item.appendChild(document.createElement("canvas"));
  canvas.setAttribute("aria-hidden", "true");
  canvas.width = canvas.height = SIDE;
  const image = new ImageData(SIDE, SIDE);
  instance?.forEach((value, index) => {
    image.data[index * 4 + 3] = (value / INK) * 255; // black with this opacity; CSS inverts it
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  const label = item.appendChild(document.createElement("b"));
  label.textContent = digit;
  item.appendChild(document.createElement("span")).textContent = percent(probability);
  return item;
}

function age(seconds) {
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const count = Math.floor(seconds / length);
    if (count >= 1) return `${count} ${unit}${count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}
