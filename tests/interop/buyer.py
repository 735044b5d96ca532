"""Buys URL once with the Python x402 client. With RAW_HEADER set it sends that header and signs nothing."""

import json
import os
import sys

import requests
from eth_account import Account
from x402 import x402ClientSync
from x402.http import decode_payment_response_header
from x402.http.clients import wrapRequestsWithPayment
from x402.mechanisms.evm import EthAccountSigner
from x402.mechanisms.evm.exact import register_exact_evm_client


def body_of(response):
    try:
        return response.json()
    except ValueError:
        return response.text


def main():
    url, raw = sys.argv[1], os.environ.get("RAW_HEADER")
    with requests.Session() as session:
        session.trust_env = False  # the seller is on this machine, whatever proxy is configured
        headers = {"PAYMENT-SIGNATURE": raw} if raw else {}
        if not raw:
            client = x402ClientSync()
            register_exact_evm_client(client, EthAccountSigner(Account.from_key(os.environ["PRIVATE_KEY"])))
            wrapRequestsWithPayment(session, client)
        response = session.get(url, headers=headers, timeout=60)
    receipt = response.headers.get("PAYMENT-RESPONSE")
    payment = decode_payment_response_header(receipt).model_dump(mode="json", by_alias=True) if receipt else None
    sent = response.request.headers.get("PAYMENT-SIGNATURE")
    print(json.dumps({"status": response.status_code, "body": body_of(response), "payment": payment, "header": sent}))


main()
