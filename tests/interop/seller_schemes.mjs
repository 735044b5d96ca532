// A seller on @x402/express with every payment method: /report by EIP-3009, /permit2 and /sponsored by Permit2, /metered and
// /metered-sponsored by scheme upto. They charge the query's `charge`, or the whole price without one.
import express from "express";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { UptoEvmScheme } from "@x402/evm/upto/server";
import { paymentMiddleware, setSettlementOverrides, x402ResourceServer } from "@x402/express";
import { declareEip2612GasSponsoringExtension } from "@x402/extensions";

const { FACILITATOR_URL, PAY_TO, NETWORK = "eip155:84532", PRICE = "$0.01", PORT = "0" } = process.env;
if (!FACILITATOR_URL || !PAY_TO) throw new Error("FACILITATOR_URL and PAY_TO must be set");

const facilitator = new HTTPFacilitatorClient({ url: FACILITATOR_URL });
const payments = new x402ResourceServer(facilitator)
  .register(NETWORK, new ExactEvmScheme())
  .register(NETWORK, new UptoEvmScheme());
const exact = { scheme: "exact", network: NETWORK, payTo: PAY_TO, price: PRICE };
const permit2 = { ...exact, extra: { assetTransferMethod: "permit2" } };
const upto = { ...exact, scheme: "upto" };

// The payer needs no Permit2 allowance: it signs an EIP-2612 permit, and the facilitator pays for the gas.
const extensions = declareEip2612GasSponsoringExtension();
const routes = {
  "GET /report": { accepts: exact, description: "A report" },
  "GET /permit2": { accepts: permit2, description: "A report" },
  "GET /sponsored": { accepts: permit2, description: "A report", extensions },
  "GET /metered": { accepts: upto, description: "A report of any length" },
  "GET /metered-sponsored": { accepts: upto, description: "A report of any length", extensions },
};

let served = 0;
const app = express();
app.use(paymentMiddleware(routes, payments));
app.get(Object.keys(routes).map((route) => route.slice("GET ".length)), (req, res) => {
  if (req.query.charge !== undefined) setSettlementOverrides(res, { amount: req.query.charge });
  res.json({ report: "the weather is fine", served: ++served });
});

const server = app.listen(Number(PORT), "127.0.0.1", () => {
  console.log(JSON.stringify({ listening: `http://127.0.0.1:${server.address().port}` }));
});
