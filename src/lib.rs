//! x402d: the x402 facilitator people run themselves.
//!
//! x402 lets a program pay for an HTTP call: the server answers 402 with its price, the buyer signs a payment, and a
//! *facilitator* verifies it, settles it on chain and gives both sides the transaction hash. x402d is that facilitator over
//! a Postgres ledger. Its reason to exist is one sentence: an accepted payment moves money exactly once, whatever is killed,
//! lost or repeated, and both sides can see it.
//!
//! `docs/architecture.md` says why it is built as it is; the words are in `docs/glossary.md`.
//!
//! # The house
//!
//! Each room may know the rooms to its left; `tests/tidy.rs` fails when one looks the other way.
//!
//! ```text
//! protocol ← payment ← { chain, ledger } ← settlement ← facilitator ← http ← server ← command
//!     ↖ buyer, seller                                             config ↗     embedded ↗
//! ```
//!
//! | room | what it knows |
//! |---|---|
//! | [`protocol`] | the wire: x402 v1 and v2, EIP-712 digests, headers. No I/O, always compiled |
//! | `payment` | the domain: when a payment is good, how it may change. Pure |
//! | `chain` | the only door to RPC: facts, heads, signing, broadcasting |
//! | `ledger` | the only door to SQL: payments, grants, lanes, transactions, events |
//! | `settlement` | the engine: from a queued payment to the chain and back |
//! | `facilitator` | the three verbs, and the rule of who is told success |
//! | `http` | routes, status codes, problem documents, the contract |
//! | `config`, `telemetry`, `server` | read once; log; put together, take apart |
//! | `coalesce`, `clock` | one round trip for many callers; the time |
//! | `embedded` | a private Postgres and a local chain for who has none |
//! | `command` | the command line |
//! | `buyer`, `seller` | thin clients of the protocol, usable without the rest |
//!
//! # One payment, followed to its receipt
//!
//! 1. `POST /settle` arrives. `http::body` bounds and reads it, [`protocol::PaymentRequest::parse`] turns either dialect into one
//!    strict value. What is malformed inside gets a stable code with HTTP 200, because SDKs drop the reason on anything else.
//! 2. `payment::Candidate` checks the shape and recovers the signature; nobody was asked so far. Then the ledger: a known
//!    authorization is *joined*, never judged again; the table in `facilitator::decision` says what its presenter gets.
//! 3. A new one passes the operator's policy and the clock, then `chain::facts` looks at payer, nonce, balance and a
//!    simulated transfer in one `eth_call`, shared with whoever else is asking. Only a `payment::Verified` can be accepted. Where the nonce
//!    is used already, `facilitator::recognise` looks whether the money moved, and whether that was meant for us.
//! 4. `Ledger::accept` locks the payer's account, so that nobody promises more than they have, and inserts the row: one per (network,
//!    token or Permit2, payer, nonce), whoever comes first. It is `queued`. Statements of callers that come together are one (`ledger::groups`).
//! 5. A `settlement::Lane`, one signer's nonces owned by lease and epoch, takes it: at once when it is idle, else together with others in
//!    one call, rehearsed as a whole. It signs under its next nonce and commits nonce, bytes, hash and links in one SQL transaction.
//!    **This is the write-ahead line**: above it nothing has left the process, below it nothing can be lost. The payment is `inflight`.
//! 6. The bytes go to every endpoint. *Accepted*, *rejected* and *unknown* are the outcomes; unknown is never failure, and the same
//!    bytes are sent again until the nonce is used; better paid ones under the same nonce when blocks ask for more.
//! 7. The `settlement::Watch` follows the chain parent by parent. In the block's receipts the lane finds `AuthorizationUsed`, or the
//!    proxy's `Settled`, and beside it the exact `Transfer`; anything less is no success. The result is committed: `settled`, with block and
//!    log index. What the transaction did not move stays undecided, until `settlement::Unmoved` has asked the chain about it at the promised
//!    depth.
//! 8. The waiting request wakes, reads the row and takes the *grant*: a row that says who was told. It answers from the row.
//! 9. `http::connection` sees the answer flushed to the socket and closes the grant as answered. Had the connection broken first,
//!    the grant would be void, and the next presenter of the same header would be told success with the same hash.
//!
//! Money moves by one of two methods (`payment::Method`): the token's own authorization (EIP-3009), or Permit2 through the proxy of a scheme, whose
//! trace `chain::permit2` reads. In scheme `upto` the requirement of `/settle` is the charge, the payment is pinned to the lane of the signer that the
//! payer named, and a charge of nothing is settled at 4, without a transaction. What a payer signed in place of an allowance to Permit2 rides along:
//! a permit in the call of 5, or an approval that `settlement::Approvals` has mined before.
//!
//! A payer may also send the money first. `POST /sessions` fixes the terms; what is then handed in is either an authorization whose nonce is
//! the session's, which enters at 2, or a plain transfer of the payer's own (`facilitator::submission`), which is written down with its
//! bytes and followed by `settlement::Transfers` to 7. The request comes last and finds the payment at 8.
//!
//! After `kill -9` at any of these points, the next start reads open transactions from the ledger, sends their bytes again and
//! goes on at 7; payments that were only queued go on at 5, wherever `settlement::Pickup` finds that a lane has room.
//!
//! # What always holds
//!
//! - Bytes, hash and nonce are committed before they are sent; a nonce gets other content only under the same nonce.
//! - `settled` (money moved) and *granted* (a seller was told) are two facts with two rows.
//! - A row is the truth, memory a cache; an answer is rendered from a committed row.
//! - Every invariant stands twice: in a type, and as a named constraint in `migrations/`.
//! - Integers only. No key, signature or RPC URL in a log line or an answer.
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
#[cfg(test)]
#[cfg(all(feature = "buyer", feature = "seller"))]
mod market_tests;
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
