// The 8 by 8 image that the model sees: shows it, and lets a keyboard (or a click) draw it.

import { INK, SIDE } from "./digit.js";

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const CYCLE = new Map([[0, INK], [INK, INK / 2]]); // empty, full, half, empty; anything else empties

/**
 * Make an element the pixel grid. `onChange(instance)` is called when a person edits a pixel,
 * `onClear()` when they press Escape. Returns {show(instance)}.
 */
export function pixelGrid(grid, onChange, onClear) {
  const values = new Array(SIDE * SIDE).fill(0);
  const cells = [];
  for (let row = 0; row < SIDE; row += 1) {
    const line = grid.appendChild(document.createElement("div"));
    line.setAttribute("role", "row");
    for (let column = 0; column < SIDE; column += 1) {
      const cell = line.appendChild(document.createElement("div"));
      cell.setAttribute("role", "gridcell");
      cell.tabIndex = cells.length ? -1 : 0; // one stop for the Tab key; arrows do the rest
      cells.push(cell);
    }
  }
  cells.forEach((_, index) => set(index, 0));

  function set(index, value) {
    values[index] = value;
    const [row, column] = [Math.floor(index / SIDE) + 1, (index % SIDE) + 1];
    cells[index].style.setProperty("--ink-share", `${(value / INK) * 100}%`);
    cells[index].setAttribute("aria-label", `row ${row} column ${column}, ink ${value} of ${INK}`);
  }

  function edit(index, value) {
    set(index, value);
    onChange([...values]);
  }

  function focus(index) {
    for (const cell of cells) cell.tabIndex = -1;
    cells[index].tabIndex = 0;
    cells[index].focus();
  }

  grid.addEventListener("keydown", (event) => {
    const index = cells.indexOf(event.target);
    if (index < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const arrow = ARROWS[event.key];
    if (arrow) {
      const row = Math.max(0, Math.min(SIDE - 1, Math.floor(index / SIDE) + arrow[0]));
      const column = Math.max(0, Math.min(SIDE - 1, (index % SIDE) + arrow[1]));
      focus(row * SIDE + column);
      if (event.shiftKey) {
        set(index, INK);
        edit(row * SIDE + column, INK);
      }
    } else if (event.key === " " || event.key === "Enter") {
      edit(index, CYCLE.get(values[index]) ?? 0);
    } else if (event.key === "Escape") {
      onClear();
    } else {
      return;
    }
    event.preventDefault();
  });
  grid.addEventListener("click", (event) => {
    const index = cells.indexOf(event.target);
    if (index < 0) return;
    focus(index);
    edit(index, CYCLE.get(values[index]) ?? 0);
  });

  return { show: (instance) => instance.forEach((value, index) => set(index, value)) };
}
