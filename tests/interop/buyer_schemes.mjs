// Buys URL once with @x402/fetch in the scheme that the seller asks for. With RPC_URL it reads the chain, so that the facilitator can
// pay for its Permit2 allowance; with APPROVE as well it first pays for the allowance itself. With RAW_HEADER it sends that payment
// header and signs nothing.
import { decodePaymentRequiredHeader } from "@x402/core/http";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { createPermit2ApprovalTx, UptoEvmScheme } from "@x402/evm/upto/client";
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { createWalletClient, http, publicActions } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";
import { print, recordingFetch } from "./recording.mjs";

const url = process.argv[2];
const { PRIVATE_KEY, RAW_HEADER, RPC_URL, APPROVE } = process.env;
const { sent, fetchAndRecord } = recordingFetch("PAYMENT-SIGNATURE");

const challenge = (response) => {
  const header = response.headers.get("PAYMENT-REQUIRED");
  return header ? decodePaymentRequiredHeader(header) : null;
};

async function approve(account) {
  const { asset } = challenge(await fetch(url)).accepts[0];
  const wallet = createWalletClient({ account, chain: baseSepolia, transport: http(RPC_URL) }).extend(publicActions);
  await wallet.waitForTransactionReceipt({ hash: await wallet.sendTransaction(createPermit2ApprovalTx(asset)), pollingInterval: 100 });
}

async function pay() {
  const account = privateKeyToAccount(PRIVATE_KEY);
  if (APPROVE) await approve(account);
  const options = RPC_URL ? { rpcUrl: RPC_URL } : undefined;
  const client = new x402Client()
    .register("eip155:*", new ExactEvmScheme(account, options))
    .register("eip155:*", new UptoEvmScheme(account, options));
  return wrapFetchWithPayment(fetchAndRecord, client)(url);
}

const response = RAW_HEADER
  ? await fetchAndRecord(url, { headers: { "PAYMENT-SIGNATURE": RAW_HEADER } })
  : await pay();
const refusal = challenge(response)?.error ?? null;
await print(response, "PAYMENT-RESPONSE", decodePaymentResponseHeader, sent.header, { refusal });
