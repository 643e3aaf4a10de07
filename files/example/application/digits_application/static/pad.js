// The drawing area: collects strokes from a mouse, a pen or a finger.

const SIZE = 100; // strokes are kept in hundredths of the area's side
const LINE = 7;

/**
 * Make a canvas a drawing area. `onChange(strokes)` is called after each piece of a stroke.
 * Returns {clear}.
 */
export function drawingPad(canvas, onChange) {
  const context = canvas.getContext("2d");
  let strokes = [];
  let pointer = null; // the one that draws; further fingers are ignored

  function redraw() {
    const pixels = Math.round(canvas.clientWidth * devicePixelRatio);
    if (canvas.width !== pixels) canvas.width = canvas.height = pixels;
    canvas.toggleAttribute("data-blank", strokes.length === 0); // page.css: the hint
    context.setTransform(pixels / SIZE, 0, 0, pixels / SIZE, 0, 0);
    context.clearRect(0, 0, SIZE, SIZE);
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = LINE;
    context.strokeStyle = getComputedStyle(canvas).color;
    for (const stroke of strokes) {
      context.beginPath();
      context.moveTo(...stroke[0]);
      stroke.forEach(([x, y], index) => {
        // Curves through the middles of the lines look smooth at any speed of the hand.
        const [nextX, nextY] = stroke[index + 1] ?? [x, y];
        context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
      });
      context.stroke();
    }
  }

  function extend(event) {
    const box = canvas.getBoundingClientRect();
    const seen = event.getCoalescedEvents?.() ?? [];
    for (const { clientX, clientY } of seen.length ? seen : [event]) {
      strokes.at(-1).push([
        ((clientX - box.left) / box.width) * SIZE,
        ((clientY - box.top) / box.height) * SIZE,
      ]);
    }
    redraw();
    onChange(strokes);
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    strokes.push([]);
    extend(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId === pointer) extend(event);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (event.pointerId === pointer) pointer = null;
    });
  }

  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return {
    clear() {
      strokes = [];
      redraw();
    },
  };
}
