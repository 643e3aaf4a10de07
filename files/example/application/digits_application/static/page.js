// The page: a drawing becomes an instance, an instance becomes a prediction.

import { instanceOf, SIDE } from "./digit.js";
import { milliseconds, percent } from "./format.js";
import { followBatch } from "./gallery.js";
import { drawingPad } from "./pad.js";
import { pixelGrid } from "./pixels.js";

const PAUSE_MS = 250; // after the last change of the drawing
const RETRY_MS = 3000; // after the prediction service could not answer

const element = (id) => document.getElementById(id);
const bars = [...element("bars").children];
let timer = 0;
let pending = new AbortController();

function showing(state) {
  document.body.dataset.state = state; // empty, drawn, answered or failed: page.css does the rest
}

function predictSoon(instance, delay = PAUSE_MS) {
  clearTimeout(timer);
  pending.abort();
  timer = setTimeout(predict, delay, instance);
}

async function predict(instance) {
  pending = new AbortController();
  const { signal } = pending;
  const started = performance.now();
  try {
    const response = await fetch("/api/predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ instance }),
      signal,
    });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(answer.error ?? `the server answered ${response.status}`);
    showAnswer(answer, performance.now() - started);
  } catch (error) {
    if (signal.aborted) return;
    forgetAnswer();
    element("problem").textContent = `No prediction: ${error.message}. Trying again.`;
    showing("failed");
    predictSoon(instance, RETRY_MS);
  }
}

function showAnswer(answer, roundTrip) {
  const probability = answer.probabilities[answer.digit];
  element("digit").textContent = answer.digit;
  element("certainty").textContent = `${percent(probability)} sure`;
  bars.forEach((bar, digit) => {
    const share = answer.probabilities[digit];
    bar.dataset.probability = share;
    bar.classList.toggle("chosen", digit === answer.digit);
    bar.style.setProperty("--share", `${share * 100}%`);
    bar.querySelector(".percent").textContent = percent(share);
  });
  element("version").textContent = answer.version ? `v${answer.version}` : "";
  element("round-trip").textContent = milliseconds(roundTrip);
  element("model-time").textContent =
    answer.model_ms === null ? "unknown" : milliseconds(answer.model_ms);
  element("problem").textContent = "";
  showing("answered");
}

function forgetAnswer() {
  for (const id of ["digit", "certainty", "problem"]) element(id).textContent = "";
  for (const bar of bars) {
    bar.removeAttribute("data-probability");
    bar.classList.remove("chosen");
    bar.style.setProperty("--share", "0%");
    bar.querySelector(".percent").textContent = "";
  }
}

function clear() {
  clearTimeout(timer);
  pending.abort();
  pad.clear();
  pixels.show(new Array(SIDE * SIDE).fill(0));
  forgetAnswer();
  showing("empty");
}

function changed(instance) {
  if (!instance.some((value) => value > 0)) return clear();
  if (document.body.dataset.state === "empty") showing("drawn");
  predictSoon(instance);
}

const pixels = pixelGrid(element("pixels"), changed, clear);
const pad = drawingPad(element("pad"), (strokes) => {
  const instance = instanceOf(strokes);
  pixels.show(instance);
  changed(instance);
});
element("clear").addEventListener("click", clear);
clear();
followBatch(element("batch"));
