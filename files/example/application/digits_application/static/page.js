// The page: a drawing becomes an instance, an instance becomes a prediction.

import { askJson } from "./api.js";
import { instanceOf, SIDE } from "./digit.js";
import { ago, milliseconds, percent, say } from "./format.js";
import { followBatch } from "./gallery.js";
import { drawingPad } from "./pad.js";
import { pixelGrid } from "./pixels.js";
import { followStatus } from "./status.js";
import { clearTiming, showTiming } from "./timing.js";
import { fileUpload } from "./upload.js";

const PAUSE_MS = 250; // after the last change of the drawing
const RETRY_MS = 3000; // after the prediction service could not answer
const SLOW_MS = 1500; // then the page says that it waits

const element = (id) => document.getElementById(id);
const bars = [...element("bars").children];
let timer = 0;
let pending = new AbortController();

function showing(state) {
  document.body.dataset.state = state; // empty, drawn, answered, failed or stopped: page.css does the rest
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
  const waited = () => Math.round((performance.now() - started) / 1000);
  const slow = setInterval(() => {
    element("waiting").hidden = false;
    element("waited").textContent = `${waited()} s`;
  }, SLOW_MS);
  const done = () => {
    clearInterval(slow);
    element("waiting").hidden = true;
  };
  signal.addEventListener("abort", done);
  try {
    const answer = await askJson("api/predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ instance }),
      signal,
    });
    done();
    showAnswer(answer, performance.now() - started);
    // Somebody who still looks at it shall see the service's own answer when it is back.
    if (answer.problem) predictSoon(instance, RETRY_MS);
  } catch (error) {
    if (signal.aborted) return;
    done();
    forgetAnswer();
    say(element("problem"), `No prediction: ${error.message}. Trying again.`);
    showing("failed");
    heard(false);
    predictSoon(instance, RETRY_MS);
  }
}

function showAnswer(answer, roundTrip) {
  const probability = answer.probabilities[answer.digit];
  say(element("digit"), String(answer.digit));
  say(element("certainty"), `${percent(probability)} sure`);
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
  document.body.dataset.source = answer.source;
  say(element("source"), sourceOf(answer));
  say(element("problem"), answer.problem ? `Now: ${answer.problem}. Trying again.` : "");
  showTiming(element("timing"), answer.timing_ms, roundTrip);
  showing("answered");
  heard(!answer.problem);
}

function sourceOf({ source, age_seconds: age }) {
  const when = age === null ? "" : `, ${ago(age)}`;
  switch (source) {
    case "stale":
      return `Stale: the service's answer for the same image${when}`;
    case "fallback":
      return `Fallback: what the last batch run predicted for the same image${when}`;
    case "embedded":
      return "By the model embedded in this application";
    default:
      return "By the prediction service";
  }
}

function forgetAnswer() {
  for (const id of ["digit", "certainty", "source"]) say(element(id), "");
  clearTiming(element("timing"));
  delete document.body.dataset.source;
  for (const bar of bars) {
    bar.removeAttribute("data-probability");
    bar.classList.remove("chosen");
    bar.style.setProperty("--share", "0%");
    bar.querySelector(".percent").textContent = "";
  }
}

function stop() {
  clearTimeout(timer);
  pending.abort();
  forgetAnswer();
  say(element("problem"), "Stopped waiting. Change the drawing to try again.");
  showing("stopped");
  element("clear").focus(); // the button that was pressed is gone
}

function clear() {
  clearTimeout(timer);
  pending.abort();
  pad.clear();
  pixels.show(new Array(SIDE * SIDE).fill(0));
  forgetAnswer();
  say(element("problem"), "");
  showing("empty");
}

function changed(instance) {
  if (!instance.some((value) => value > 0)) return clear();
  if (["empty", "stopped"].includes(document.body.dataset.state)) showing("drawn");
  predictSoon(instance);
}

function choose(instance) {
  clear();
  pixels.show(instance);
  changed(instance);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element("try").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
}

const pixels = pixelGrid(element("pixels"), changed, clear);
const pad = drawingPad(element("pad"), (strokes) => {
  const instance = instanceOf(strokes);
  pixels.show(instance);
  changed(instance);
});
element("clear").addEventListener("click", clear);
element("stop").addEventListener("click", stop);
const heard = followStatus(element("status"));
clear();
fileUpload(element("file"));
followBatch(element("batch"), choose);
