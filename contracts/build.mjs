// Compiles contracts/src to contracts/artifacts; with --check it only compares and fails when they differ.
import { readdirSync, readFileSync, writeFileSync, mkdirSync, rmSync, existsSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const root = dirname(fileURLToPath(import.meta.url));
const sourceDir = join(root, "src");
const artifactDir = join(root, "artifacts");

const settings = {
  evmVersion: "cancun",
  optimizer: { enabled: true, runs: 10_000 },
  viaIR: true,
  // Without the metadata trailer the bytecode depends on nothing but the code and these settings.
  metadata: { appendCBOR: false, bytecodeHash: "none" },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode"] } },
};

// A general notice printed at the first use of `tstore`; here it is a guard that is cleared when its call ends.
const TRANSIENT_STORAGE_NOTICE = "2394";

function sources() {
  const files = readdirSync(sourceDir, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".sol"))
    .sort();
  return Object.fromEntries(
    files.map((file) => [file.split(sep).join("/"), { content: readFileSync(join(sourceDir, file), "utf8") }]),
  );
}

function compile() {
  const input = { language: "Solidity", sources: sources(), settings };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  const problems = (output.errors ?? []).filter((problem) => problem.errorCode !== TRANSIENT_STORAGE_NOTICE);
  for (const problem of problems) console.error(problem.formattedMessage);
  // Warnings fail the build too: a new one deserves a look.
  if (problems.length > 0) process.exit(1);
  return output.contracts;
}

/** File name to text of everything that belongs in the artifacts directory. */
function artifacts(contracts) {
  const files = new Map();
  for (const perFile of Object.values(contracts)) {
    for (const [name, { abi, evm }] of Object.entries(perFile)) {
      const runtime = evm.deployedBytecode.object;
      if (runtime === "") continue;
      if (files.has(`${name}.json`)) throw new Error(`two contracts are named ${name}`);
      if (Object.keys(evm.deployedBytecode.immutableReferences ?? {}).length > 0) {
        throw new Error(`${name} has immutables, so its runtime cannot be placed as it is`);
      }
      const artifact = {
        contract: name,
        abi,
        bytecode: `0x${evm.bytecode.object}`,
        deployedBytecode: `0x${runtime}`,
      };
      files.set(`${name}.json`, `${JSON.stringify(artifact, null, 2)}\n`);
      files.set(`${name}.runtime.hex`, `0x${runtime}\n`);
    }
  }
  return files;
}

function check(files) {
  const present = existsSync(artifactDir) ? readdirSync(artifactDir) : [];
  const stale = present.filter((file) => !files.has(file));
  for (const [file, text] of files) {
    if (!present.includes(file) || readFileSync(join(artifactDir, file), "utf8") !== text) stale.push(file);
  }
  if (stale.length > 0) {
    console.error(`stale: ${stale.sort().join(", ")}; run node build.mjs`);
    process.exit(1);
  }
  console.log(`${files.size} artifacts are up to date`);
}

const files = artifacts(compile());
if (process.argv.includes("--check")) {
  check(files);
} else {
  rmSync(artifactDir, { recursive: true, force: true });
  mkdirSync(artifactDir);
  for (const [file, text] of files) writeFileSync(join(artifactDir, file), text);
  console.log(`wrote ${files.size} files to ${relative(process.cwd(), artifactDir) || "."}`);
}
