// Mathematics of latent codes, which are standard normal under the model.

/** a + scale b. */
export const add = (a, b, scale = 1) => a.map((value, i) => value + scale * b[i]);

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const norm = (a) => Math.sqrt(dot(a, a));

/**
 * The code a share t of the way from a to b: along the great circle between their directions, the length between
 * theirs. In many dimensions nearly all codes are about sqrt(D) long; a straight line would leave that shell.
 */
export function interpolate(a, b, t) {
  const lengths = [norm(a), norm(b)];
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(a, b) / (lengths[0] * lengths[1] || 1))));
  if (angle < 1e-4) return add(a.map((value) => (1 - t) * value), b, t);
  const [from, to] = [Math.sin((1 - t) * angle), Math.sin(t * angle)].map((part) => part / Math.sin(angle));
  const length = (1 - t) * lengths[0] + t * lengths[1];
  return a.map((value, i) => length * ((from * value) / (lengths[0] || 1) + (to * b[i]) / (lengths[1] || 1)));
}

/**
 * The `count` unit vectors v, orthogonal to each other, for which sum_i v_i rows[i] is longest: the leading left
 * singular vectors of the rows, by subspace iteration.
 */
export function leadingDirections(rows, count, iterations = 30) {
  const size = rows[0].length;
  let vectors = Array.from({ length: Math.min(count, rows.length) }, (_, k) =>
    Float64Array.from(rows, (_, i) => Math.cos((k + 1) * (i + 0.5) * 2.4))); // anything that no vector is orthogonal to
  for (let iteration = 0; iteration < iterations; iteration++) {
    vectors = orthonormal(vectors.map((vector) => {
      const sum = new Float64Array(size);
      rows.forEach((row, i) => { for (let j = 0; j < size; j++) sum[j] += vector[i] * row[j]; });
      return Float64Array.from(rows, (row) => dot(sum, row));
    }));
  }
  return vectors;
}

function orthonormal(vectors) {
  const done = [];
  for (let vector of vectors) {
    for (const other of done) vector = add(vector, other, -dot(vector, other));
    const length = norm(vector) || 1;
    done.push(vector.map((value) => value / length));
  }
  return done;
}
