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
  // Without the metadata trailer the bytecode depends only on the code and these settings.
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
  // Warnings fail the build too: a new one must be examined.
  if (problems.length > 0) process.exit(1);
  return output.contracts;
}

/** Maps file names of the artifacts directory to their contents. */
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

/** The local chain as a genesis file, for an anvil on which no contracts are placed later (`anvil --init`). */
function genesis(files) {
  const place = (name, storage) => ({ balance: "0x0", code: files.get(`${name}.runtime.hex`).trim(), storage });
  const implementationSlot = "0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc";
  const implementation = "0x0000000000000000000000000000000000402001";
  const alloc = {
    [implementation]: place("TestUsdc"),
    "0x036CbD53842c5426634e7929541eC2318f3dCF7e": place("TokenProxy", { [implementationSlot]: `0x${implementation.slice(2).padStart(64, "0")}` }),
    "0x0000000000000000000000000000000000402003": place("SmartWalletFactory"),
    "0xcA11bde05977b3631167028862bE2a173976CA11": place("Multicall3"),
    "0x000000000022D473030F116dDEE9F6B43aC78BA3": place("Permit2"),
    "0x402085c248EeA27D92E8b30b2C58ed07f9E20001": place("ExactPermit2Proxy"),
    "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002": place("UptoPermit2Proxy"),
  };
  return `${JSON.stringify({ config: { chainId: 84532 }, alloc }, null, 2)}\n`;
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
files.set("genesis.json", genesis(files));
if (process.argv.includes("--check")) {
  check(files);
} else {
  rmSync(artifactDir, { recursive: true, force: true });
  mkdirSync(artifactDir);
  for (const [file, text] of files) writeFileSync(join(artifactDir, file), text);
  console.log(`wrote ${files.size} files to ${relative(process.cwd(), artifactDir) || "."}`);
}
