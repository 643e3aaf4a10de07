// Turns a drawing into the kind of image that the model was trained on.
//
// The UCI handwritten digits were made by the preprocessing of the NIST form-based handprint
// recognition system (NISTIR 5469): a character is sheared until it stands upright, scaled into a
// box of 20 by 32 pixels in the middle of 32 by 32, its strokes are made thicker or thinner until
// the amount of ink is usual, and each block of 4 by 4 pixels is counted. A drawing knows its
// strokes, so the same is done here to lines instead of pixels.

export const SIDE = 8;
export const INK = 16; // a block of 4 by 4 pixels, all inked

const BITMAP = 32;
const WIDTH = 20;
const USUAL_INK = 0.305 * BITMAP * BITMAP; // pixels; the mean of the training images
const PEN = { thinnest: 1.2, thickest: 4 }; // radius in pixels

/**
 * The 64 numbers from 0 to 16, row by row, that the model sees of a drawing.
 * @param {number[][][]} strokes each a list of points [x, y], y downwards, in any unit
 */
export function instanceOf(strokes) {
  const upright = straighten(strokes);
  let { thinnest, thickest } = PEN;
  let bitmap;
  for (let step = 0; step < 7; step += 1) {
    const radius = (thinnest + thickest) / 2;
    bitmap = rasterise(fit(upright, radius), radius);
    const ink = bitmap.reduce((sum, pixel) => sum + pixel, 0);
    if (ink < USUAL_INK) thinnest = radius;
    else thickest = radius;
  }
  return countBlocks(bitmap);
}

function bounds(points) {
  let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [x, y] of points) {
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y);
  }
  return { left, top, width: right - left, height: bottom - top };
}

// Shear until the left-most ink of the top and of the bottom lie below each other.
function straighten(strokes) {
  const points = strokes.flat();
  const { top, height } = bounds(points);
  const edge = height * 0.05;
  const above = bounds(points.filter(([, y]) => y <= top + edge));
  const below = bounds(points.filter(([, y]) => y >= top + height - edge));
  const slope = Math.max(-1, Math.min(1, (below.left - above.left) / (height || 1)));
  return strokes.map((stroke) => stroke.map(([x, y]) => [x - slope * (y - top), y]));
}

// Scale to the height of the bitmap, narrower where the width would exceed the box, and centre.
function fit(strokes, radius) {
  const { left, top, width, height } = bounds(strokes.flat());
  const scaleY = (BITMAP - 2 * radius) / Math.max(height, 1e-9);
  const scaleX = Math.min(scaleY, (WIDTH - 2 * radius) / Math.max(width, 1e-9));
  const [centreX, centreY] = [left + width / 2, top + height / 2];
  return strokes.map((stroke) =>
    stroke.map(([x, y]) => [
      BITMAP / 2 + (x - centreX) * scaleX,
      BITMAP / 2 + (y - centreY) * scaleY,
    ]),
  );
}

// Ink every pixel whose centre lies within the pen's radius of a line.
function rasterise(strokes, radius) {
  const bitmap = new Uint8Array(BITMAP * BITMAP);
  const first = (a, b) => Math.max(0, Math.floor(Math.min(a, b) - radius));
  const last = (a, b) => Math.min(BITMAP - 1, Math.ceil(Math.max(a, b) + radius));
  for (const stroke of strokes) {
    stroke.forEach(([ax, ay], index) => {
      const [bx, by] = stroke[Math.min(index + 1, stroke.length - 1)];
      const [dx, dy] = [bx - ax, by - ay];
      const squared = dx * dx + dy * dy;
      for (let y = first(ay, by); y <= last(ay, by); y += 1) {
        for (let x = first(ax, bx); x <= last(ax, bx); x += 1) {
          const [px, py] = [x + 0.5 - ax, y + 0.5 - ay];
          const along = squared ? Math.max(0, Math.min(1, (px * dx + py * dy) / squared)) : 0;
          if (Math.hypot(px - along * dx, py - along * dy) <= radius) bitmap[y * BITMAP + x] = 1;
        }
      }
    });
  }
  return bitmap;
}

function countBlocks(bitmap) {
  const block = BITMAP / SIDE;
  const counts = new Array(SIDE * SIDE).fill(0);
  bitmap.forEach((pixel, index) => {
    const row = Math.floor(index / BITMAP / block);
    const column = Math.floor((index % BITMAP) / block);
    counts[row * SIDE + column] += pixel;
  });
  return counts;
}
