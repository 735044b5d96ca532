// Buys URL once with x402-fetch (protocol version 1). With RAW_HEADER it sends that header and signs nothing.
import { decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";
import { createWalletClient, custom } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";
import { print, recordingFetch } from "./recording.mjs";

const url = process.argv[2];
const { PRIVATE_KEY, RAW_HEADER } = process.env;
const { sent, fetchAndRecord } = recordingFetch("X-PAYMENT");

// The wallet signs locally: a transport that rejects every call proves that nothing leaves the machine.
const offline = custom({ request: ({ method }) => Promise.reject(new Error(`offline wallet asked for ${method}`)) });

function pay() {
  const account = privateKeyToAccount(PRIVATE_KEY);
  const wallet = createWalletClient({ account, chain: baseSepolia, transport: offline });
  return wrapFetchWithPayment(fetchAndRecord, wallet)(url);
}

const response = RAW_HEADER
  ? await fetchAndRecord(url, { headers: { "X-PAYMENT": RAW_HEADER } })
  : await pay();
await print(response, "X-PAYMENT-RESPONSE", decodeXPaymentResponse, sent.header);
