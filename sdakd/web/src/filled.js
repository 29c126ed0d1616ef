/**
 * What a file holds under fully transparent pixels was never meant to be seen, and a network would carry it over the edge.
 *
 * The nearest visible pixel is found by two passes of a chamfer distance (Borgefors 1986) with the weights 1, 1.4 and
 * 2.1969 for steps of 5x5 pixels, in the order of OpenCV's distanceTransformWithLabels, with which `sdakd upscale` fills.
 */

const UNIT = 65536;
const NEXT = UNIT;
const DIAGONAL = Math.round(1.4 * UNIT);
const KNIGHT = Math.round(2.1969 * UNIT);
// rows, columns and weight of the neighbours above and to the left; below and to the right they are mirrored
const STEPS = [
  [-2, -1, KNIGHT], [-2, 1, KNIGHT], [-1, -2, KNIGHT], [-1, -1, DIAGONAL],
  [-1, 0, NEXT], [-1, 1, DIAGONAL], [-1, 2, KNIGHT], [0, -1, NEXT],
];

/**
 * Gives transparent pixels the colour of the nearest one that is seen; alpha stays.
 *
 * @param {{width: number, height: number, channels: number, data: Uint8Array | Uint16Array}} picture changed in place.
 */
export function fill({ width, height, channels, data }) {
  if (channels !== 4) return;
  const count = width * height;
  let hidden = 0;
  for (let at = 3; at < data.length; at += 4) hidden += data[at] === 0;
  if (hidden === 0 || hidden === count) return;

  const stride = width + 4; // a margin of two pixels all around
  const distance = new Float64Array(stride * (height + 4)).fill(2 ** 31);
  const nearest = new Int32Array(distance.length);
  for (let row = 0, pixel = 0; row < height; row++) {
    for (let column = 0; column < width; column++, pixel++) {
      const at = (row + 2) * stride + column + 2;
      if (data[4 * pixel + 3]) distance[at] = 0;
      nearest[at] = pixel;
    }
  }
  const improve = (at, sign) => {
    for (const [rows, columns, weight] of STEPS) {
      const other = at + sign * (rows * stride + columns);
      if (distance[other] + weight < distance[at]) {
        distance[at] = distance[other] + weight;
        nearest[at] = nearest[other];
      }
    }
  };
  for (let row = 2; row < height + 2; row++) {
    for (let at = row * stride + 2; at < row * stride + width + 2; at++) if (distance[at]) improve(at, 1);
  }
  for (let row = height + 1; row >= 2; row--) {
    for (let at = row * stride + width + 1; at >= row * stride + 2; at--) if (distance[at] > NEXT) improve(at, -1);
  }
  for (let row = 0, pixel = 0; row < height; row++) {
    for (let column = 0; column < width; column++, pixel++) {
      if (data[4 * pixel + 3]) continue;
      const from = 4 * nearest[(row + 2) * stride + column + 2];
      for (let channel = 0; channel < 3; channel++) data[4 * pixel + channel] = data[from + channel];
    }
  }
}
