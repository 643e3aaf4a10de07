/** A probability for people: never "100%" for something that is not certain. */
export function percent(probability) {
  return probability >= 0.995 ? ">99%" : `${Math.round(probability * 100)}%`;
}

/** A duration in milliseconds for people. */
export function milliseconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** How long ago something was, for people. */
export function ago(seconds) {
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const count = Math.floor(seconds / length);
    if (count >= 1) return `${count} ${unit}${count > 1 ? "s" : ""} ago`;
  }
  return seconds < 10 ? "just now" : `${Math.floor(seconds)} seconds ago`;
}

/** Change an element's text only where it differs: a screen reader reads a live region at every write. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
