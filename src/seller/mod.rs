//! The seller: a tower layer that asks for payment in front of an axum application.
//!
//! Knows the protocol, axum and a facilitator's URL. Must not know the facilitator's rooms. What always holds: a priced route never
//! runs without a verdict of the facilitator; an outage is 502, never free content; what buyers are told holds neither the
//! facilitator's address nor its raw errors; routes without a price pass untouched.

mod answer;
mod client;
mod layer;
mod offer;
mod payment;
mod paywall;
mod price;

pub use client::{FacilitatorClient, FacilitatorError};
pub use layer::{PaywallLayer, PaywallService};
pub use payment::Payment;
pub use paywall::{Flow, Paywall, PaywallError};
pub use price::Price;
