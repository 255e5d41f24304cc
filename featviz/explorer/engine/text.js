// Bytes of the page's blocks.

// The bytes that `page.printed` wrote as text: two characters hold 13 bits, low bits first. Before
// them stands their count in four bytes.
function bytesOf(text) {
  const bytes = new Uint8Array(Math.floor((text.length * 13) / 16));
  const digit = (at) => {
    const code = text.charCodeAt(at);
    return code - (code > 60 ? 36 : 35);
  };
  let held = 0, bits = 0, to = 0;
  for (let at = 0; at < text.length; at += 2) {
    held |= (digit(at) + 91 * digit(at + 1)) << bits;
    for (bits += 13; bits > 7; bits -= 8, held >>= 8) bytes[to++] = held & 255;
  }
  const count = new DataView(bytes.buffer).getUint32(0, true);
  return bytes.slice(4, 4 + count);
}

async function inflated(bytes) {
  const opened = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(opened).arrayBuffer());
}
