// Masks in COCO's compressed run-length encoding: lengths of runs outside and inside, down the columns of the image.

/** Return the lengths of the runs, which alternate; the first is outside. */
function runs(counts) {
  const lengths = [];
  for (let place = 0; place < counts.length;) {
    let length = 0, shift = 0, group;
    do {
      group = counts.charCodeAt(place++) - 48;
      length |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16 && shift < 32) length |= -1 << shift;
    if (lengths.length > 2) length += lengths.at(-2);
    lengths.push(length);
  }
  return lengths;
}

/** Call `fill(x, y, height)` for each vertical stripe of a mask. */
function stripes({ size: [height], counts }, fill) {
  let start = 0;
  runs(counts).forEach((length, index) => {
    for (let at = start, end = start + length; index % 2 && at < end;) {
      const y = at % height, part = Math.min(height - y, end - at);
      fill(Math.floor(at / height), y, part);
      at += part;
    }
    start += length;
  });
}
