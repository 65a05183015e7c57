// onnxruntime-node and onnxruntime-web for bench.portable: the protocol of runtimes.py.
//     NODE_PATH=FOLDER/node_modules node bench/runtimes.cjs onnxruntime-web < requests
"use strict";
const fs = require("fs");
const path = require("path");
const readline = require("readline");

const MARK = "@@ ";
const ARRAYS = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array,
                 uint8: Uint8Array, bool: Uint8Array };
const answer = (what) => process.stdout.write(MARK + JSON.stringify(what) + "\n");

async function run(ort, asked) {
  const session = await ort.InferenceSession.create(fs.readFileSync(asked.model), { logSeverityLevel: 3 });
  const feeds = {};
  for (const [name, dtype, shape, file] of asked.inputs) {
    const bytes = new Uint8Array(fs.readFileSync(file)).buffer; // a copy of its own, so aligned
    feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](bytes), shape);
  }
  const results = await session.run(feeds, asked.outputs);
  const listed = asked.outputs.map((name, i) => {
    const { data, dims, type } = results[name];
    const file = `${asked.out}.${i}`;
    fs.writeFileSync(file, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return [type, dims, file];
  });
  await session.release();
  return listed;
}

async function main(name) {
  let ort;
  try {
    ort = require(name);
    if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
    const folder = process.env.NODE_PATH.split(path.delimiter).find((f) => fs.existsSync(path.join(f, name)));
    answer({ version: JSON.parse(fs.readFileSync(path.join(folder, name, "package.json"))).version });
  } catch (error) {
    answer({ missing: String(error.message).split("\n")[0] });
    return;
  }
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    try {
      answer({ outputs: await run(ort, asked) });
    } catch (error) {
      answer({ error: String((error && error.message) || error).replace(/\s+/g, " ").slice(0, 600) });
    }
  }
}

main(process.argv[2]);
