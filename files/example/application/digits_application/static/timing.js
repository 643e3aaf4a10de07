// Where the time of the last request went: a bar, and the same in words and numbers.

import { milliseconds } from "./format.js";

// In the order in which a request meets them. "prediction" is all behind the application, when it
// was not told apart because no prediction came back.
const NAMES = {
  network: "Network to the page",
  application: "Application",
  gateway: "Gateway",
  service: "Prediction service",
  queue: "Queue",
  model: "Model",
  prediction: "Waiting for the service",
};

/** Show that there is no answer whose time could be shown. */
export function clearTiming(section) {
  section.querySelector(".split").replaceChildren();
  const list = section.querySelector("dl");
  list.replaceChildren();
  const group = list.appendChild(document.createElement("div"));
  group.appendChild(document.createElement("dt")).textContent = "No answer yet";
  group.appendChild(document.createElement("dd"));
}

/** Show an answer's shares; `roundTrip` is the whole request as the page saw it, in ms. */
export function showTiming(section, shares, roundTrip) {
  const told = Object.values(shares).reduce((sum, ms) => sum + ms, 0);
  const all = { network: Math.max(0, roundTrip - told), ...shares };
  const total = Object.values(all).reduce((sum, ms) => sum + ms, 0) || 1;
  const entries = Object.keys(NAMES)
    .filter((name) => name in all)
    .map((name) => ({ name, ms: all[name], share: all[name] / total }));
  section.querySelector(".split").replaceChildren(
    ...entries.map(({ name, share }) => {
      const piece = document.createElement("i");
      piece.dataset.part = name;
      piece.style.setProperty("--share", share);
      return piece;
    }),
  );
  section.querySelector("dl").replaceChildren(
    ...entries.map(({ name, ms, share }) => {
      const group = document.createElement("div");
      group.dataset.part = name;
      group.appendChild(document.createElement("dt")).textContent = NAMES[name];
      group.appendChild(document.createElement("dd")).textContent =
        `${milliseconds(ms)} · ${Math.round(share * 100)}%`;
      return group;
    }),
  );
}
