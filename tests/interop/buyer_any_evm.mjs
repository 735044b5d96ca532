// A buyer built like wrappers around the official client: schemes exact and upto on every EVM network, a signer for typed data
// only, no v1, and the payment's id taken from the decoded PAYMENT-RESPONSE.
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { UptoEvmScheme } from "@x402/evm/upto/client";
import { privateKeyToAccount } from "viem/accounts";
import { print, recordingFetch } from "./recording.mjs";

const { address, signTypedData } = privateKeyToAccount(process.env.PRIVATE_KEY);
const signer = { address, signTypedData };
const { sent, fetchAndRecord } = recordingFetch("PAYMENT-SIGNATURE");

/** The transaction that the result names; null without a result. */
function extractPaymentId(response) {
  const result = response.headers.get("PAYMENT-RESPONSE");
  return result ? decodePaymentResponseHeader(result).transaction : null;
}

const client = new x402Client()
  .register("eip155:*", new ExactEvmScheme(signer))
  .register("eip155:*", new UptoEvmScheme(signer));
const response = await wrapFetchWithPayment(fetchAndRecord, client)(process.argv[2]);
await print(response, "PAYMENT-RESPONSE", decodePaymentResponseHeader, sent.header, { paymentId: extractPaymentId(response) });
