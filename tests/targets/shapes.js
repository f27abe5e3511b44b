// What node programs allocate under, natively: buffers, zlib, crypto, strings, files.
const crypto = require('crypto');
const fs = require('fs');
const zlib = require('zlib');

function nested(depth, work) {
  return depth ? [nested(depth - 1, work)] : work();
}
function round(n) {
  const data = Buffer.from('some text '.repeat(500) + n);
  nested(n % 10, () => zlib.gunzipSync(zlib.gzipSync(data)));
  nested(n % 7, () => crypto.createHash('sha256').update(data).digest('hex'));
  nested(n % 5, () => JSON.stringify(JSON.parse(JSON.stringify({a: [1, 2, 3], b: 'x'.repeat(100)}))));
  nested(n % 4, () => fs.readFileSync('/proc/self/status', 'utf8').split('\n').map((line) => line.toUpperCase()));
  [5, 3, 9, 1].sort((a, b) => Buffer.alloc(9000 + a - b).length && a - b);
  crypto.randomBytes(64);
  new RegExp('a+b' + n).exec('aaaab' + n);
}
let count = 0;
function rounds() {
  for (let n = 0; n < 20; n++) round(n);
  count += 1;
  if (count === 400) process.stdout.write('{"event":"ready"}\n');
  setTimeout(rounds, 1);
}
rounds();
