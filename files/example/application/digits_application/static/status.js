// How fresh what the page shows is: who predicts, and the last batch run.

import { askJson, repeatedly } from "./api.js";
import { ago, say } from "./format.js";

const REFRESH_MS = 5000;

/**
 * Keep the two lines in `list` up to date. Returns `heard(good)`, to be called with what became of a
 * prediction: the line about them shall not contradict it for long.
 */
export function followStatus(list) {
  const [prediction, batch] = ["prediction", "batch"].map((name) =>
    list.querySelector(`[data-status="${name}"]`),
  );
  const refresh = repeatedly(async () => {
    try {
      const status = await askJson("api/status");
      show(prediction, ...predictionStatus(status));
      show(batch, ...batchStatus(status.batch));
    } catch (error) {
      show(prediction, "bad", `not known: ${error.message}`);
      show(batch, "bad", "not known");
    }
  }, REFRESH_MS);
  return (good) => {
    if ((prediction.dataset.health === "good") !== good) refresh();
  };
}

function show(line, health, text) {
  line.dataset.health = health;
  say(line.querySelector("span"), text);
}

function predictionStatus({ mode, model, version, problem, answered_seconds_ago: seconds }) {
  const name = version ? `${model} v${version}` : model;
  if (mode === "embedded") return ["good", `${name}, embedded in this application`];
  if (problem) return ["bad", `${name} through the gateway: ${problem}`];
  if (seconds === null) return ["unknown", `${name} through the gateway, not asked yet`];
  return ["good", `${name} through the gateway, answered ${ago(seconds)}`];
}

function batchStatus({ run, age_seconds: age, loading_seconds: loading, problem }) {
  if (run === null) {
    if (loading !== null) return ["unknown", "the first run is being loaded"];
    return problem ? ["bad", "no run, and the store cannot be read"] : ["unknown", "no run yet"];
  }
  const text = `finished ${ago(age)}`;
  if (problem) return ["bad", `${text}; a newer one cannot be loaded`];
  return ["good", loading !== null && loading > 2 ? `${text}; a newer one is being loaded` : text];
}
