"""A seller on Flask with the Python x402 package: /report by EIP-3009, /permit2 and /sponsored by Permit2, /metered and
/metered-sponsored by scheme upto. They charge the query's `charge`, or the whole price without one."""

import json
import logging
import os

from flask import Flask, jsonify, request
from werkzeug.serving import make_server
from x402 import x402ResourceServerSync
from x402.extensions.eip2612_gas_sponsoring import declare_eip2612_gas_sponsoring_extension
from x402.http import HTTPFacilitatorClientSync, PaymentOption, RouteConfig
from x402.http.middleware.flask import payment_middleware, set_settlement_overrides
from x402.mechanisms.evm.exact.server import ExactEvmScheme
from x402.mechanisms.evm.upto.server import UptoEvmScheme

NETWORK = os.environ.get("NETWORK", "eip155:84532")
TERMS = {"pay_to": os.environ["PAY_TO"], "price": os.environ.get("PRICE", "$0.01"), "network": NETWORK}

headers = {"Authorization": f"Bearer {os.environ.get('FACILITATOR_KEY')}"}
with_key = {"create_headers": lambda: {"verify": headers, "settle": headers, "supported": headers}}
facilitator = HTTPFacilitatorClientSync(
    {"url": os.environ["FACILITATOR_URL"], **(with_key if "FACILITATOR_KEY" in os.environ else {})}
)
payments = x402ResourceServerSync(facilitator)
payments.register(NETWORK, ExactEvmScheme()).register(NETWORK, UptoEvmScheme())

exact = PaymentOption(scheme="exact", **TERMS)
permit2 = PaymentOption(scheme="exact", extra={"assetTransferMethod": "permit2"}, **TERMS)
upto = PaymentOption(scheme="upto", **TERMS)
# The payer needs no Permit2 allowance: it signs an EIP-2612 permit, and the facilitator pays for the gas.
sponsored = declare_eip2612_gas_sponsoring_extension()
routes = {
    "GET /report": RouteConfig(accepts=exact),
    "GET /permit2": RouteConfig(accepts=permit2),
    "GET /sponsored": RouteConfig(accepts=permit2, extensions=sponsored),
    "GET /metered": RouteConfig(accepts=upto),
    "GET /metered-sponsored": RouteConfig(accepts=upto, extensions=sponsored),
}

app = Flask(__name__)
served = 0


def report():
    global served
    served += 1
    response = jsonify(report="the weather is fine", served=served)
    if "charge" in request.args:
        set_settlement_overrides(response, {"amount": request.args["charge"]})
    return response


for route in routes:
    path = route.removeprefix("GET ")
    app.add_url_rule(path, path, report)
payment_middleware(app, routes, payments)
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", int(os.environ.get("PORT", "0")), app, threaded=True)
print(json.dumps({"listening": f"http://127.0.0.1:{server.port}"}), flush=True)
server.serve_forever()
