// Outlines of detections as paths of SVG, in pixels of the picture.

const THRESHOLD = 0.5;
// Steps along a mask; straight lines between so many follow the bilinear surface. At least one
// between two cells' centres.
const STEPS = 84;

// Edges that a contour enters and leaves a cell by, with the mask on its right: top 0, right 1,
// bottom 2, left 3. The index has the corners that are in the mask: 8 top left, 4 top right,
// 2 bottom right, 1 bottom left. 5 and 10 are for masks that do not join in the middle.
const CROSSINGS = [
  [], [[3, 2]], [[2, 1]], [[3, 1]], [[1, 0]], [[3, 2], [1, 0]], [[2, 0]], [[3, 0]],
  [[0, 3]], [[0, 2]], [[0, 3], [2, 1]], [[0, 1]], [[1, 3]], [[1, 2]], [[2, 3]], [],
];
const JOINED = { 5: [[3, 0], [1, 2]], 10: [[0, 1], [2, 3]] };

/** The path of a detection's outline: around its mask, or its box without a mask. */
export function outlineOf({ box, probabilities }) {
  return (probabilities && contour(probabilities, box)) || rectangle(box);
}

/** The path of a box, [y1, x1, y2, x2]. */
export function rectangle([y1, x1, y2, x2]) {
  return `M${x1} ${y1}H${x2}V${y2}H${x1}Z`;
}

/** The path around what is at least THRESHOLD of probabilities [M, M] that cover a box. */
function contour(probabilities, [y1, x1, y2, x2]) {
  const steps = Math.max(Math.round(STEPS / probabilities.length), 1);
  const grid = refine(pad(probabilities), steps);
  const cells = probabilities.length * steps;
  const place = ([row, column]) => {
    const x = x1 + ((column - steps / 2) / cells) * (x2 - x1);
    const y = y1 + ((row - steps / 2) / cells) * (y2 - y1);
    return `${x.toFixed(2)} ${y.toFixed(2)}`;
  };
  return chain(crossings(grid))
    .map((edges) => `M${edges.map((edge) => place(cross(grid, edge))).join("L")}Z`)
    .join("");
}

/** Surrounds probabilities with zeros, as they are where masks are pasted. */
function pad(probabilities) {
  const zeros = new Array(probabilities.length + 2).fill(0);
  return [zeros, ...probabilities.map((row) => [0, ...row, 0]), zeros];
}

/** Interpolates `steps` nodes between two of a grid. */
function refine(grid, steps) {
  const side = (grid.length - 1) * steps + 1;
  const between = (index) => {
    const first = Math.min(Math.floor(index / steps), grid.length - 2);
    return [first, index / steps - first];
  };
  const mix = (a, b, share) => a + (b - a) * share;
  return Array.from({ length: side }, (_, row) => {
    const [top, down] = between(row);
    return Array.from({ length: side }, (_, column) => {
      const [left, right] = between(column);
      return mix(
        mix(grid[top][left], grid[top][left + 1], right),
        mix(grid[top + 1][left], grid[top + 1][left + 1], right),
        down,
      );
    });
  });
}

/** Maps each edge that a contour crosses to the next one. */
function crossings(grid) {
  const side = grid.length;
  const next = new Map();
  for (let row = 0; row < side - 1; row++) {
    for (let column = 0; column < side - 1; column++) {
      const corners = [
        grid[row][column], grid[row][column + 1], grid[row + 1][column + 1], grid[row + 1][column],
      ];
      const index = corners.reduce((bits, value) => bits * 2 + (value >= THRESHOLD), 0);
      const joins = corners.reduce((sum, value) => sum + value, 0) / 4 >= THRESHOLD;
      for (const [enter, leave] of (joins && JOINED[index]) || CROSSINGS[index]) {
        next.set(edgeOf(enter, row, column, side), edgeOf(leave, row, column, side));
      }
    }
  }
  return next;
}

/** The number of an edge: twice the number of its first node, and 1 more if it is vertical. */
function edgeOf(edge, row, column, side) {
  const node = (row + (edge === 2)) * side + column + (edge === 1);
  return 2 * node + (edge % 2);
}

/** Where a contour crosses an edge, [row, column]. */
function cross(grid, edge) {
  const side = grid.length;
  const node = Math.floor(edge / 2);
  const [row, column] = [Math.floor(node / side), node % side];
  const isVertical = edge % 2;
  const start = grid[row][column];
  const stop = isVertical ? grid[row + 1][column] : grid[row][column + 1];
  const share = (THRESHOLD - start) / (stop - start);
  return isVertical ? [row + share, column] : [row, column + share];
}

function chain(next) {
  const rings = [];
  while (next.size) {
    const ring = [];
    let [edge] = next.keys();
    while (next.has(edge)) {
      ring.push(edge);
      const following = next.get(edge);
      next.delete(edge);
      edge = following;
    }
    rings.push(ring);
  }
  return rings;
}
