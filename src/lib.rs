//! x402d: a self-hosted x402 payment facilitator.
//!
//! x402 lets a program pay for an HTTP call: the server answers 402 with its price, the buyer signs a payment, and a *facilitator* verifies
//! it, settles it on chain and gives both sides the transaction hash. x402d is such a facilitator, with a ledger in Postgres. Its main
//! guarantee: an accepted payment moves money exactly once, whatever process is killed, message lost or request repeated, and both sides
//! can see it.
//!
//! `docs/architecture.md` says why it is built as it is; `docs/glossary.md` has the words.
//!
//! # Two words of this code
//!
//! - A **lane** is the right to use the nonces of one signer on one network. One process at a time owns it, by a lease in the ledger, and
//!   every new owner increases its epoch, so that an owner that lost the lease cannot commit any more. Every transaction of a signer is
//!   signed by its lane.
//! - A **grant** is the row that says to which request a payment's success was answered. A payment has at most one open or answered grant,
//!   so its success is answered once, although many requests may present it. A grant whose answer was not delivered is *void*, and
//!   the next request may take a new one.
//!
//! # Modules
//!
//! A module may use the modules to its left; `tests/tidy.rs` fails when one uses another.
//!
//! ```text
//! protocol ← payment ← { chain, ledger } ← settlement ← facilitator ← http ← webhooks ← server ← command
//!     ↖ buyer, seller                                             config ↗     embedded ↗
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`protocol`] | the wire format: x402 v1 and v2, EIP-712 digests, headers. No I/O, always compiled |
//! | `payment` | the domain: when a payment is valid and how its state may change. No I/O |
//! | `chain` | the only module with RPC calls: facts about a payment, blocks, receipts, signing, broadcasting |
//! | `ledger` | the only module with SQL: payments, grants, lanes, transactions, events |
//! | `settlement` | the engine: takes queued payments to the chain and records their results (`intake`, `lane`, `watch`, `reconcile`) |
//! | `facilitator` | verify, settle, status, supported and sessions; decides which request is answered success, and notes what is refused |
//! | `http` | routes, status codes, problem documents, the API specification; the operator's page |
//! | `webhooks` | sends events to the operator's receivers |
//! | `config`, `telemetry`, `server` | configuration; log output; start and stop |
//! | `coalesce`, `clock`, `timing` | one round trip for several callers; the time; how long the engine waits |
//! | `embedded` | a private Postgres and a local chain |
//! | `command` | the command line |
//! | `buyer`, `seller` | clients of the protocol, usable without the rest |
//!
//! # One payment, from request to receipt
//!
//! The steps are numbered as in `docs/architecture.md#the-path-of-a-payment`.
//!
//! 1. `POST /settle` arrives. `http::body` reads it within limits, and [`protocol::PaymentRequest::parse`] turns either version of x402 into
//!    one strict value. A malformed payment gets a stable code with HTTP 200, because SDKs drop the reason of any other status.
//! 2. `facilitator::intake` has steps 2 to 5, from top to bottom. `payment::Candidate` checks the shape and recovers the signature, without
//!    I/O.
//! 3. The ledger is asked: a request for a known authorization *joins* its payment, which is not checked again;
//!    `facilitator::settle::decide` is the table of answers.
//! 4. A new authorization passes `facilitator::gate` and is checked against the operator's policy and the clock. Then `chain::facts` reads payer, nonce, balance and
//!    a simulated transfer in one `eth_call`, shared with other requests. Only a `payment::Verified` can be accepted. If the nonce is
//!    used already, `facilitator::transferred` looks whether the money was transferred, and whether that counts for this ledger.
//! 5. `Ledger::accept` locks the payer's account, so that a payer cannot promise more than its balance, and inserts the row: one for each
//!    (network, token or Permit2, payer, nonce). The payment is `queued`. `ledger::groups` runs concurrent calls as one statement.
//! 6. A `settlement::Lane` takes the payment: alone if the lane is idle, else with others in one transaction, which is simulated first. It
//!    signs with its next nonce and commits nonce, bytes, hash and payments in one SQL transaction. **This commit is the write-ahead
//!    point**: before it nothing was sent, after it nothing can be lost. The payment is `inflight`.
//! 7. The bytes are sent to every endpoint. The outcome is *accepted*, *rejected* or *unknown*, and unknown is no failure: the same bytes
//!    are sent again until the nonce is used. When blocks cost more, a replacement transaction with a higher fee uses the same nonce.
//! 8. `settlement::Watch` follows the chain by parent hashes. In the receipts of a block, the lane looks for `AuthorizationUsed`, or for the
//!    proxy's `Settled`, together with the exact `Transfer`; nothing less is a success. The result is committed with block and log index:
//!    `mined`, and `settled` once the block has its confirmations and is still in the chain. A payment that its transaction did not transfer
//!    stays undecided until the required confirmations are reached; then `settlement::Reconciler` asks the chain what became of its
//!    authorization.
//! 9. The waiting request wakes up, reads the row, takes the grant if it is the next in line (`facilitator::line`: the request that had the
//!    payment accepted, then those that came after it), and builds the response from the row. `http::connection` sees that the
//!    response was flushed to the socket, and closes the grant as answered. If the connection breaks before, the grant is void, and the next
//!    request with the same header is answered success with the same hash.
//!
//! Money moves by one of two methods (`payment::Method`): the token's own authorization (EIP-3009), or Permit2 through the proxy contract
//! of the scheme. In scheme `upto` the amount in `/settle` is the charge, only the signer that the payer named can send the payment, and
//! a charge of zero is settled in step 5, without a transaction. A payer who has not allowed Permit2 to take the token can sign a permit,
//! which is sent in the transaction of step 6, or an approval, which is sent and mined before.
//!
//! A payer may also send the money first. `POST /sessions` fixes the terms. The buyer then submits an authorization with the session's
//! nonce, which enters at step 2, or its own transfer (`facilitator::submission`), which is recorded with its bytes and followed to step 8.
//! The request of the seller comes last: it finds the payment in step 3 and takes the grant in step 9.
//!
//! After `kill -9` at any of these points, the next start reads the open transactions from the ledger, sends their bytes again and
//! continues at step 8. Payments that were only queued continue at step 6, in any process whose lanes have room.
//!
//! # Invariants
//!
//! - Bytes, hash and nonce of a transaction are committed before it is sent. A transaction is replaced only under its own nonce.
//! - `settled` (the money was transferred) and *granted* (success was answered to a request) are two facts in two rows.
//! - The ledger is the source of truth, memory is a cache: an answer is built from a committed row.
//! - Every invariant is enforced twice: by a type, and by a named constraint in `migrations/`.
//! - Amounts are integers. No key, signature or RPC URL appears in a log line or a response.
#[cfg(feature = "buyer")]
pub mod buyer;
#[cfg(feature = "server")]
pub mod chain;
pub mod clock;
#[cfg(feature = "server")]
pub mod coalesce;
#[cfg(feature = "server")]
pub mod command;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod embedded;
#[cfg(feature = "server")]
pub mod facilitator;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod ledger;
#[cfg(feature = "server")]
pub mod payment;
pub mod protocol;
#[cfg(feature = "seller")]
pub mod seller;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod settlement;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod timing;
#[cfg(feature = "server")]
pub mod webhooks;
