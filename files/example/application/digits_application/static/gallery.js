// The last batch run: its figures, and its predictions a page at a time, filtered by the server.

import { askJson, repeatedly } from "./api.js";
import { INK, SIDE } from "./digit.js";
import { ago, percent, say } from "./format.js";

const REFRESH_MS = 15_000;
const UNSURE = 0.8; // predictions below are marked
const PAGE = matchMedia("(max-width: 40rem)").matches ? 18 : 48; // as page.css has it

/** Keep the gallery in `section` up to date. `onChoose(instance)` is called for an image that somebody picks. */
export function followBatch(section, onChoose) {
  const form = section.querySelector(".filters");
  const [digit, confidence] = form.querySelectorAll("select");
  const pager = section.querySelector(".pager");
  const [back, on] = pager.querySelectorAll("button");
  let offset = 0;
  let asked = 0;
  let matching = 0;

  async function refresh() {
    const number = (asked += 1);
    const [minimum, maximum] = confidence.value.split("-");
    const query = new URLSearchParams({ digit: digit.value, minimum, maximum, offset, limit: PAGE });
    try {
      const batch = await askJson(`api/batch?${query}`);
      if (number !== asked) return; // somebody has changed the filter since
      say(section.querySelector("[data-problem]"), "");
      if (batch.run !== null && offset > 0 && offset >= batch.matching) {
        offset = 0; // a newer run has fewer
        await refresh();
        return;
      }
      matching = batch.matching ?? 0;
      show(section, batch, `${query}`, onChoose);
      showPager(batch);
    } catch (error) {
      // What is shown stays, the next round tries again.
      if (number === asked) {
        say(section.querySelector("[data-problem]"), `This may be out of date: ${error.message}.`);
      }
    } finally {
      if (number === asked) section.removeAttribute("aria-busy");
    }
  }

  function showPager(batch) {
    pager.hidden = form.hidden = batch.run === null;
    const last = offset + batch.items.length;
    const count = matching.toLocaleString();
    say(
      pager.querySelector("[role=status]"),
      matching ? `${(offset + 1).toLocaleString()}–${last.toLocaleString()} of ${count}` : "No row matches",
    );
    // Not "disabled": that would take the focus away from who presses it.
    back.setAttribute("aria-disabled", offset === 0);
    on.setAttribute("aria-disabled", last >= matching);
  }

  function turn(to) {
    if (to < 0 || to >= matching) return;
    change(to);
  }

  function change(to) {
    offset = to;
    section.setAttribute("aria-busy", "true");
    refresh();
  }

  back.addEventListener("click", () => turn(Math.max(offset - PAGE, offset ? 0 : -1)));
  on.addEventListener("click", () => turn(offset + PAGE));
  for (const select of [digit, confidence]) select.addEventListener("change", () => change(0));
  repeatedly(refresh, REFRESH_MS);
}

function show(section, batch, query, onChoose) {
  section.querySelector("[data-empty]").hidden = batch.run !== null;
  section.querySelector("dl").hidden = batch.run === null;
  if (batch.run === null) return;
  const figures = {
    run: batch.run,
    rows: batch.rows.toLocaleString(),
    rejected: batch.rejected.toLocaleString(),
    version: batch.model_version ?? "unknown",
    age: ago(batch.age_seconds),
  };
  for (const [name, text] of Object.entries(figures)) {
    say(section.querySelector(`[data-figure="${name}"]`), text);
  }
  const list = section.querySelector("ol");
  const shown = `${batch.run} ${query}`;
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(...batch.items.map((item) => thumbnail(item, onChoose)));
}

function thumbnail({ id, instance, digit, probability }, onChoose) {
  const item = document.createElement("li");
  item.title = id;
  item.dataset.digit = digit;
  item.classList.toggle("unsure", probability < UNSURE);
  const box = item.appendChild(document.createElement(instance ? "button" : "div"));
  const canvas = box.appendChild(document.createElement("canvas"));
  canvas.setAttribute("aria-hidden", "true");
  canvas.width = canvas.height = SIDE;
  const image = new ImageData(SIDE, SIDE);
  instance?.forEach((value, index) => {
    image.data[index * 4 + 3] = (value / INK) * 255; // black with this opacity; CSS inverts it
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  const label = box.appendChild(document.createElement("b"));
  label.textContent = digit;
  box.appendChild(document.createElement("span")).textContent = percent(probability);
  if (instance) {
    box.type = "button";
    box.setAttribute("aria-label", `${id}: ${digit}, ${percent(probability)} sure. Predict this image`);
    box.addEventListener("click", () => onChoose(instance));
  }
  return item;
}
