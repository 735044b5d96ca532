// Buys URL once with @x402/fetch. With RAW_HEADER it sends that payment header and signs nothing.
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { privateKeyToAccount } from "viem/accounts";
import { print, recordingFetch } from "./recording.mjs";

const url = process.argv[2];
const { PRIVATE_KEY, RAW_HEADER } = process.env;
const { sent, fetchAndRecord } = recordingFetch("PAYMENT-SIGNATURE");

function pay() {
  const client = new x402Client().register("eip155:*", new ExactEvmScheme(privateKeyToAccount(PRIVATE_KEY)));
  return wrapFetchWithPayment(fetchAndRecord, client)(url);
}

const response = RAW_HEADER
  ? await fetchAndRecord(url, { headers: { "PAYMENT-SIGNATURE": RAW_HEADER } })
  : await pay();
await print(response, "PAYMENT-RESPONSE", decodePaymentResponseHeader, sent.header);
