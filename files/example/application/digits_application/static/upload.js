// A file of many rows: sent, watched while it is predicted in the background, and its result saved.

import { ApiError, ask, askJson } from "./api.js";
import { say } from "./format.js";

const LOOK_MS = 700;
// A look may meet another host of the application, which does not know the file.
const MOST_MISSES = 8;

/** Make `section` the place to predict files. */
export function fileUpload(section) {
  const part = (name) => section.querySelector(`[data-file="${name}"]`);
  const input = section.querySelector("input");
  const most = Number(input.dataset.mostBytes);
  let running = null; // the AbortController of the file in work
  let result = null;

  function show(state, text, problem = "") {
    section.dataset.state = state; // idle, running, done or failed: page.css does the rest
    say(part("status"), text);
    say(part("problem"), problem);
  }

  function progress(done, rows) {
    const bar = part("progress");
    if (rows) {
      bar.max = rows;
      bar.value = done;
    } else {
      bar.removeAttribute("value"); // not known how much
    }
  }

  async function start() {
    const [file] = input.files;
    result = null;
    if (!file) {
      show("failed", "", "Choose a file first.");
      input.focus();
      return;
    }
    if (file.size > most) {
      const limit = Math.floor(most / 1024).toLocaleString();
      show("failed", "", `${file.name} is larger than ${limit} KiB; send it in parts.`);
      return;
    }
    running = new AbortController();
    const { signal } = running;
    progress(0, 0);
    show("running", `Sending ${file.name}…`);
    let id = null;
    try {
      const sent = await askJson("api/files", {
        method: "POST",
        headers: { "Content-Type": "text/csv" },
        body: file,
        signal,
        patience: 60_000,
      });
      id = sent.id;
      signal.addEventListener("abort", () => forget(id));
      const ended = await watch(sent, signal);
      if (ended.state !== "done") throw new ApiError(ended.problem ?? ended.state, 0);
      result = `api/files/${id}/result.csv`;
      progress(ended.rows, ended.rows);
      show("done", `${ended.rows.toLocaleString()} rows predicted.`);
    } catch (error) {
      if (signal.aborted) show("idle", "Cancelled.");
      else show("failed", "", `Not predicted: ${error.message}.`.replace("..", "."));
    } finally {
      running = null;
    }
  }

  async function watch(job, signal) {
    for (let misses = 0; ; ) {
      if (["done", "failed", "cancelled"].includes(job.state)) return job;
      progress(job.done, job.rows);
      const count = `${job.done.toLocaleString()} of ${job.rows.toLocaleString()} rows`;
      show("running", job.state === "waiting" ? "Waiting for other files…" : `${count} predicted`, job.problem ? `Still waiting: ${job.problem}.` : "");
      await pause(LOOK_MS, signal);
      try {
        job = await askJson(`api/files/${job.id}`, { signal });
        misses = 0;
      } catch (error) {
        if (signal.aborted) throw error;
        misses += 1;
        if (misses > MOST_MISSES) throw error;
        if (error.status !== 404) say(part("problem"), `Still waiting: ${error.message}.`);
      }
    }
  }

  async function save() {
    try {
      const blob = await (await persistently(result)).blob();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "predictions.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      show("failed", "", `The result cannot be fetched: ${error.message}.`);
    }
  }

  section.querySelector('[data-do="start"]').addEventListener("click", start);
  section.querySelector('[data-do="save"]').addEventListener("click", save);
  section.querySelector('[data-do="cancel"]').addEventListener("click", () => running?.abort());
  input.addEventListener("change", () => show("idle", ""));
}

async function persistently(path) {
  for (let misses = 0; ; ) {
    try {
      return await ask(path);
    } catch (error) {
      misses += 1;
      if (error.status !== 404 || misses > MOST_MISSES) throw error;
    }
  }
}

function forget(id) {
  ask(`api/files/${id}`, { method: "DELETE" }).catch(() => {}); // it expires anyway
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
