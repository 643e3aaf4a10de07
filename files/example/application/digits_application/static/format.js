/** A probability for people: never "100%" for something that is not certain. */
export function percent(probability) {
  return probability >= 0.995 ? ">99%" : `${Math.round(probability * 100)}%`;
}

/** A duration in milliseconds for people. */
export function milliseconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}
