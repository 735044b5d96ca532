//! The wire format: x402 versions 1 and 2 as the shipped SDKs implement them, EIP-712 digests and header encodings.
//!
//! Knows JSON, base64, hex and hashing. Must not know the network, the clock, the database or the facilitator. Always
//! compiled, because buyers and sellers need it too.
//!
//! Invariant: every value of these types was parsed strictly (decimal amounts, 20-byte addresses, 32-byte nonces), so other
//! modules never parse again. Version 1 is translated to version 2 in [`v1`] and nowhere else.
#![warn(missing_docs)]

pub mod amount;
pub mod assets;
pub mod challenge;
pub mod exact_evm;
pub mod field;
pub mod gas_sponsoring;
pub mod header;
pub mod network;
pub mod networks;
pub mod payment;
pub mod payment_method;
pub mod permit2;
pub mod reason;
pub mod request;
pub mod requirements;
pub mod response;
pub mod session;
pub mod status;
pub mod text;
pub mod v1;
pub mod version;

pub use amount::Amount;
pub use challenge::PaymentRequired;
pub use exact_evm::{Authorization, DomainSeparator, ExactPayload};
pub use gas_sponsoring::{Eip2612Info, Erc20ApprovalInfo, Extension, GasSponsoring};
pub use network::Network;
pub use payment::{PaymentHeader, PresentedPayment};
pub use payment_method::PaymentMethod;
pub use permit2::{Permit2Authorization, Permit2Payload};
pub use reason::{Reason, Rejection};
pub use request::{AuthorizationPayload, Payload, PaymentRequest, RequestError};
pub use requirements::{PaymentRequirements, Scheme};
pub use response::{SettleResponse, Supported, SupportedKind, VerifyResponse};
pub use text::PlainText;
pub use version::X402Version;
