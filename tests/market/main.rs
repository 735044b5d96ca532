//! Buyer and seller over real sockets, with a facilitator that returns scripted responses.
//!
//!     cargo test --test market

#[cfg(test)]
mod asked_facilitators;
#[cfg(test)]
mod buying;
#[cfg(test)]
mod deliveries;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod journaling;
#[cfg(test)]
mod lost_answers;
#[cfg(test)]
mod metered;
#[cfg(test)]
mod metered_again;
#[cfg(test)]
mod paid_bodies;
#[cfg(test)]
mod permit2;
#[cfg(test)]
mod selling;
#[cfg(test)]
mod spellings;
#[cfg(test)]
mod support;
#[cfg(test)]
mod turned_away;
