// The application's API. Paths are relative, so that the page works below any path of the gateway.

const PATIENCE_MS = 20_000; // then the server is taken for gone

/** An answer that is no success. `status` is the server's, 0 when there was none. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Ask the API; resolves to the response of a success. Rejects with ApiError, or with the signal's
 * AbortError when `signal` was aborted.
 */
export async function ask(path, { signal, patience = PATIENCE_MS, ...options } = {}) {
  const late = AbortSignal.timeout(patience);
  const either = signal ? AbortSignal.any([signal, late]) : late;
  let response;
  try {
    response = await fetch(path, { ...options, signal: either });
  } catch (error) {
    if (signal?.aborted) throw error;
    const why = late.aborted ? "the server does not answer" : "the server cannot be reached";
    throw new ApiError(why, 0);
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new ApiError(error ?? `the server answered ${response.status}`, response.status);
}

/** The JSON of a success. */
export async function askJson(path, options) {
  const response = await ask(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new ApiError("the server's answer was cut off", 0);
  }
}

/**
 * Do something now, every so often, and when the page is looked at again; never two at a time.
 * Returns a function that does it out of turn.
 */
export function repeatedly(work, interval) {
  let busy = false;
  const round = async () => {
    if (document.hidden || busy) return;
    busy = true;
    try {
      await work();
    } finally {
      busy = false;
    }
  };
  round();
  setInterval(round, interval);
  document.addEventListener("visibilitychange", round);
  return round;
}
