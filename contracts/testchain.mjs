// A local anvil with the contracts placed, for test.mjs.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { createPublicClient, createTestClient, createWalletClient, http, pad } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";

export const USDC = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
export const USDC_IMPLEMENTATION = "0x0000000000000000000000000000000000402001";
export const LENS = "0x0000000000000000000000000000000000402002";
export const WALLET_FACTORY = "0x0000000000000000000000000000000000402003";
export const MULTICALL3 = "0xcA11bde05977b3631167028862bE2a173976CA11";
export const PERMIT2 = "0x000000000022D473030F116dDEE9F6B43aC78BA3";
export const EXACT_PROXY = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001";
export const UPTO_PROXY = "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002";
export const IMPLEMENTATION_SLOT = "0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc";

// The first account of anvil's public mnemonic pays for gas; the payer holds no ether at all.
export const settler = privateKeyToAccount("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");
export const payer = privateKeyToAccount(`0x${"11".repeat(32)}`);
export const payee = "0x2222222222222222222222222222222222222222";

export function artifact(name) {
  return JSON.parse(readFileSync(new URL(`artifacts/${name}.json`, import.meta.url), "utf8"));
}

/** Starts anvil on a free port and resolves with its URL and a way to stop it. */
async function startAnvil() {
  const bin = createRequire(import.meta.url).resolve("@foundry-rs/anvil/bin.mjs");
  const args = [bin, "--port", "0", "--chain-id", "84532", "--hardfork", "prague"];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const exited = new Promise((resolve) => child.once("exit", resolve));
  const stop = () => {
    child.kill("SIGTERM");
    return exited;
  };
  for await (const line of createInterface({ input: child.stdout })) {
    const found = line.match(/^Listening on (.+)$/);
    if (!found) continue;
    child.stdout.resume();
    return { url: `http://${found[1]}`, stop };
  }
  throw new Error("anvil ended before it listened");
}

export async function startChain() {
  const { url, stop } = await startAnvil();
  const transport = http(url);
  const chain = { ...baseSepolia, rpcUrls: { default: { http: [url] } } };
  const reader = createPublicClient({ chain, transport, pollingInterval: 20 });
  const writer = createWalletClient({ account: settler, chain, transport });
  const admin = createTestClient({ chain, mode: "anvil", transport });

  const place = (name, address) => admin.setCode({ address, bytecode: artifact(name).deployedBytecode });
  await place("TestUsdc", USDC_IMPLEMENTATION);
  await place("TokenProxy", USDC);
  await admin.setStorageAt({
    address: USDC,
    index: IMPLEMENTATION_SLOT,
    value: pad(USDC_IMPLEMENTATION, { size: 32 }),
  });
  await place("Multicall3", MULTICALL3);
  await place("SmartWalletFactory", WALLET_FACTORY);

  const send = async (address, name, functionName, args) => {
    const hash = await writer.writeContract({ address, abi: artifact(name).abi, functionName, args });
    return reader.waitForTransactionReceipt({ hash });
  };
  const view = (address, name, functionName, args) =>
    reader.readContract({ address, abi: artifact(name).abi, functionName, args });
  return { reader, writer, admin, place, send, view, stop };
}
