//! Reads: one endpoint after the other, and again where a moment may change the answer; and calls with state overrides, which not every
//! endpoint carries out.

use alloy::primitives::Bytes;
use alloy::rpc::json_rpc::{RpcRecv, RpcSend};
use serde_json::json;
use tokio::time::Instant;

use crate::chain::lens::{self, LENS};
use crate::chain::rpc::{READ_LIMIT, call};
use crate::chain::trouble::{Pauses, Trouble};
use crate::chain::{Rpc, RpcError};

impl Rpc {
    /// A read: the best endpoint first. One that is late is not waited for alone, one that fails is followed by the next. A call that
    /// reverts does so everywhere and ends the search; any other refusal (a rate limit, a method that is not served) may be one
    /// endpoint's own. What a moment may change (a limit on calls, a node that is a block behind, a broken connection) is asked again.
    ///
    /// # Errors
    /// The last endpoint's.
    pub async fn read<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> Result<R, RpcError> {
        let order = || self.order();
        self.rounds(method, parameters, order, |_, answer| answer)
            .await
    }

    /// A call with state overrides, of endpoints that carry them out: `is_answer` tells an answer from what is said by one that passes over
    /// them.
    ///
    /// # Errors
    /// [`RpcError::NoOverrides`] when no endpoint carries them out.
    pub(super) async fn call_overridden(
        &self,
        parameters: impl RpcSend,
        is_answer: impl Fn(&Bytes) -> bool,
    ) -> Result<Bytes, RpcError> {
        let order = || self.order_with_overrides();
        let judge = |index: usize, answer: Result<Bytes, RpcError>| {
            let passed_over = match &answer {
                Ok(answer) => !is_answer(answer),
                Err(error) => error.trouble() == Trouble::Unsupported,
            };
            if !passed_over {
                return answer;
            }
            self.note_overrides(index, false);
            Err(RpcError::NoOverrides)
        };
        self.rounds("eth_call", parameters, order, judge).await
    }

    /// A call with state overrides in a block that does not exist yet, which fewer nodes can do: who refuses it may do the other.
    ///
    /// # Errors
    /// When no endpoint does it.
    pub(super) async fn call_in_a_block(
        &self,
        parameters: impl RpcSend,
        is_answer: impl Fn(&Bytes) -> bool,
    ) -> Result<Bytes, RpcError> {
        let order = || self.order_with_overrides();
        let judge = |_: usize, answer: Result<Bytes, RpcError>| match answer {
            Ok(answer) if !is_answer(&answer) => Err(RpcError::NoOverrides),
            answer => answer,
        };
        self.rounds("eth_call", parameters, order, judge).await
    }

    /// Asks everybody, and everybody again for as long as that may help.
    async fn rounds<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
        order: impl Fn() -> Vec<usize>,
        judge: impl Fn(usize, Result<R, RpcError>) -> Result<R, RpcError>,
    ) -> Result<R, RpcError> {
        let (mut pauses, give_up) = (Pauses::default(), Instant::now() + READ_LIMIT);
        loop {
            let error = match self.round(method, &parameters, order(), &judge).await {
                Err(error) if !error.is_answer() => error,
                answer => return answer,
            };
            match pauses.after(&error) {
                Some(pause) if Instant::now() + pause < give_up => tokio::time::sleep(pause).await,
                Some(_) | None => return Err(error),
            }
        }
    }

    /// Asks one endpoint after the other, until one gives an answer that counts.
    async fn round<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: &impl RpcSend,
        order: Vec<usize>,
        judge: &impl Fn(usize, Result<R, RpcError>) -> Result<R, RpcError>,
    ) -> Result<R, RpcError> {
        let mut last = RpcError::Unreachable;
        let mut order = order.into_iter();
        let ask = async |index| {
            let answer = self.ask(index, method, parameters.clone()).await;
            judge(index, answer)
        };
        while let Some(first) = order.next() {
            let asked = ask(first);
            tokio::pin!(asked);
            let patience = self.patience(first);
            let answer = match tokio::time::timeout(patience, &mut asked).await {
                Ok(answer) => answer,
                Err(_) => match order.next() {
                    None => asked.await,
                    Some(second) => self.race((first, asked), ask(second)).await,
                },
            };
            match answer {
                // What is worth asking again is kept in mind.
                Err(error) if !error.is_answer() => {
                    if Pauses::default().after(&last).is_none() || last == RpcError::Unreachable {
                        last = error;
                    }
                }
                answer => return answer,
            }
        }
        Err(last)
    }

    /// The first answer that counts of a late endpoint and another one.
    async fn race<R>(
        &self,
        (late, mut asked): (usize, impl Future<Output = Result<R, RpcError>> + Unpin),
        other: impl Future<Output = Result<R, RpcError>>,
    ) -> Result<R, RpcError> {
        tokio::pin!(other);
        let counts = |answer: &Result<R, RpcError>| match answer {
            Ok(_) => true,
            Err(error) => error.is_answer(),
        };
        tokio::select! {
            answer = &mut asked => if counts(&answer) { answer } else { other.await },
            answer = &mut other => {
                if counts(&answer) {
                    if let Some(late) = self.endpoints.get(late) {
                        late.was_late();
                    }
                    answer
                } else {
                    asked.await
                }
            }
        }
    }

    /// Whom to ask with state overrides: who is not known to lack them, and everybody where all do.
    fn order_with_overrides(&self) -> Vec<usize> {
        let order = self.order();
        let able = |index: &usize| {
            let endpoint = self.endpoints.get(*index);
            endpoint.is_some_and(|endpoint| endpoint.health().has_overrides())
        };
        let able: Vec<usize> = order.iter().copied().filter(able).collect();
        if able.is_empty() { order } else { able }
    }

    fn note_overrides(&self, index: usize, has: bool) {
        let Some(endpoint) = self.endpoints.get(index) else {
            return;
        };
        let (network, number) = (self.network, index + 1);
        if endpoint.overrides(has) == has {
            return;
        }
        if has {
            tracing::info!(%network, endpoint = number, "endpoint has state overrides now; it is used for everything");
        } else {
            tracing::warn!(%network, endpoint = number, "endpoint without state overrides: it is not asked to simulate payments (eth_call needs its third parameter)");
        }
    }

    /// Tries state overrides at every endpoint. One that gives no answer keeps its reputation.
    ///
    /// # Errors
    /// [`RpcError::NoOverrides`] when nobody carries them out; an outage when that cannot be told.
    pub async fn check_overrides(&self) -> Result<(), RpcError> {
        let mut last = RpcError::NoOverrides;
        let mut able = false;
        for index in 0..self.endpoints.len() {
            match self.try_overrides(index).await {
                Ok(()) => able = true,
                Err(RpcError::NoOverrides) => {}
                Err(error) => last = error,
            }
        }
        if able { Ok(()) } else { Err(last) }
    }

    pub(super) async fn try_overrides(&self, index: usize) -> Result<(), RpcError> {
        let endpoint = self.endpoints.get(index).ok_or(RpcError::Unreachable)?;
        let question = json!({"to": LENS, "data": lens::code_sizes(vec![LENS])});
        let parameters = (question, "latest", lens::overrides());
        let answer = call::<Bytes>(&endpoint.client, READ_LIMIT, "eth_call", parameters).await;
        let has = match answer {
            Ok(answer) => lens::code_sizes_of(&answer).is_some_and(|sizes| !sizes.is_empty()),
            Err(error) if error.trouble() == Trouble::Unsupported || error.is_revert() => false,
            Err(error) => return Err(error),
        };
        self.note_overrides(index, has);
        if has {
            Ok(())
        } else {
            Err(RpcError::NoOverrides)
        }
    }
}
