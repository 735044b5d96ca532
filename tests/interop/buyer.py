"""Buys URL once with the Python x402 client, in the scheme that the seller asks for. With RPC_URL it reads the chain, so that
the facilitator can pay for its Permit2 allowance. With RAW_HEADER it sends that header and signs nothing."""

import json
import os
import sys

import requests
from eth_account import Account
from x402 import x402ClientSync
from x402.http import decode_payment_required_header, decode_payment_response_header
from x402.http.clients import wrapRequestsWithPayment
from x402.mechanisms.evm import EthAccountSigner
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC
from x402.mechanisms.evm.upto import UptoEvmClientScheme


def body_of(response):
    try:
        return response.json()
    except ValueError:
        return response.text


def paying_client():
    account, rpc_url = Account.from_key(os.environ["PRIVATE_KEY"]), os.environ.get("RPC_URL")
    signer = EthAccountSignerWithRPC(account, rpc_url) if rpc_url else EthAccountSigner(account)
    client = register_exact_evm_client(x402ClientSync(), signer)
    return client.register("eip155:*", UptoEvmClientScheme(signer))


def decoded(header, decode):
    return decode(header).model_dump(mode="json", by_alias=True) if header else None


def main():
    url, raw = sys.argv[1], os.environ.get("RAW_HEADER")
    with requests.Session() as session:
        session.trust_env = False  # the seller is on this machine: no proxy
        headers = {"PAYMENT-SIGNATURE": raw} if raw else {}
        if not raw:
            wrapRequestsWithPayment(session, paying_client())
        response = session.get(url, headers=headers, timeout=60)
    payment = decoded(response.headers.get("PAYMENT-RESPONSE"), decode_payment_response_header)
    challenge = decoded(response.headers.get("PAYMENT-REQUIRED"), decode_payment_required_header) or {}
    sent = response.request.headers.get("PAYMENT-SIGNATURE")
    line = {"status": response.status_code, "body": body_of(response), "payment": payment, "header": sent}
    print(json.dumps({**line, "refusal": challenge.get("error")}))


main()
