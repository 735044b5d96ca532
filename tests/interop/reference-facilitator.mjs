// The facilitator of the official packages: `exact` in both versions and `upto`, as their own example serves them.
import express from "express";
import { x402Facilitator } from "@x402/core/facilitator";
import { toFacilitatorEvmSigner } from "@x402/evm";
import { ExactEvmScheme } from "@x402/evm/exact/facilitator";
import { ExactEvmSchemeV1 } from "@x402/evm/exact/v1/facilitator";
import { UptoEvmScheme } from "@x402/evm/upto/facilitator";
import { EIP2612_GAS_SPONSORING } from "@x402/extensions";
import { createWalletClient, http, publicActions } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";

const { RPC_URL, SIGNER_KEY, PORT = "0" } = process.env;
if (!RPC_URL || !SIGNER_KEY) throw new Error("RPC_URL and SIGNER_KEY must be set");

const account = privateKeyToAccount(SIGNER_KEY);
const client = createWalletClient({ account, chain: baseSepolia, transport: http(RPC_URL), pollingInterval: 100 });
const signer = toFacilitatorEvmSigner(Object.assign(client.extend(publicActions), { address: account.address }));
const facilitator = new x402Facilitator()
  .register("eip155:84532", new ExactEvmScheme(signer))
  .register("eip155:84532", new UptoEvmScheme(signer))
  .registerV1("base-sepolia", new ExactEvmSchemeV1(signer))
  .registerExtension(EIP2612_GAS_SPONSORING);

const app = express();
app.use(express.json());
app.get("/supported", (_, res) => res.json(facilitator.getSupported()));
for (const call of ["verify", "settle"]) {
  app.post(`/${call}`, async (req, res) => {
    const { paymentPayload, paymentRequirements } = req.body;
    if (!paymentPayload || !paymentRequirements) {
      return res.status(400).json({ error: "Missing paymentPayload or paymentRequirements" });
    }
    try {
      res.json(await facilitator[call](paymentPayload, paymentRequirements));
    } catch (error) {
      res.status(500).json({ error: error instanceof Error ? error.message : "Unknown error" });
    }
  });
}

const server = app.listen(Number(PORT), "127.0.0.1", () => {
  console.log(JSON.stringify({ listening: `http://127.0.0.1:${server.address().port}` }));
});
