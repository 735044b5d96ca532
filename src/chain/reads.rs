//! Reads with failover, hedging and retries, and calls with state overrides, which not every endpoint supports.

use alloy::primitives::Bytes;
use alloy::rpc::json_rpc::{RpcRecv, RpcSend};
use serde_json::json;
use tokio::time::Instant;

use crate::chain::error_kind::{ErrorKind, RetryPauses};
use crate::chain::lens::{self, LENS};
use crate::chain::rpc::{READ_LIMIT, call};
use crate::chain::{Rpc, RpcError};

impl Rpc {
    /// A read from the best endpoint. When it is late, a second one is asked as well; when it fails, the next one is asked.
    ///
    /// A revert is the same on every endpoint and ends the read. Other errors (a rate limit, an unsupported method) may be specific to an
    /// endpoint. Transient ones (a rate limit, a node that is a block behind, a broken connection) are retried.
    ///
    /// # Errors
    /// Of the errors of the last round, a transient one if there is one.
    pub async fn read<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> Result<R, RpcError> {
        let order = || self.ranked();
        self.read_with_retries(method, parameters, order, |_, answer| answer)
            .await
    }

    /// A call with state overrides. `is_valid` recognises the result of an endpoint that applied them: some endpoints ignore overrides
    /// and return something else.
    ///
    /// # Errors
    /// [`RpcError::NoOverrides`] when no endpoint supports them.
    pub(super) async fn call_overridden(
        &self,
        parameters: impl RpcSend,
        is_valid: impl Fn(&Bytes) -> bool,
    ) -> Result<Bytes, RpcError> {
        let order = || self.ranked_with_overrides();
        let check = |index: usize, answer: Result<Bytes, RpcError>| {
            let unsupported = match &answer {
                Ok(answer) => !is_valid(answer),
                Err(error) => error.kind() == ErrorKind::Unsupported,
            };
            if !unsupported {
                return answer;
            }
            self.record_overrides(index, false);
            Err(RpcError::NoOverrides)
        };
        self.read_with_retries("eth_call", parameters, order, check)
            .await
    }

    /// A call with state overrides in a future block (block overrides). Fewer nodes support this, so a failure does not mean that the
    /// endpoint lacks state overrides.
    pub(super) async fn call_in_future_block(
        &self,
        parameters: impl RpcSend,
        is_valid: impl Fn(&Bytes) -> bool,
    ) -> Result<Bytes, RpcError> {
        let order = || self.ranked_with_overrides();
        let check = |_: usize, answer: Result<Bytes, RpcError>| match answer {
            Ok(answer) if !is_valid(&answer) => Err(RpcError::NoOverrides),
            answer => answer,
        };
        self.read_with_retries("eth_call", parameters, order, check)
            .await
    }

    /// Tries all endpoints, and repeats that while the error is transient, for at most [`READ_LIMIT`].
    async fn read_with_retries<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
        order: impl Fn() -> Vec<usize>,
        check: impl Fn(usize, Result<R, RpcError>) -> Result<R, RpcError>,
    ) -> Result<R, RpcError> {
        let (mut pauses, give_up) = (RetryPauses::default(), Instant::now() + READ_LIMIT);
        loop {
            let error = match self.try_each(method, &parameters, order(), &check).await {
                Err(error) if !error.is_final() => error,
                answer => return answer,
            };
            match pauses.after(&error) {
                Some(pause) if Instant::now() + pause < give_up => tokio::time::sleep(pause).await,
                Some(_) | None => return Err(error),
            }
        }
    }

    /// Asks one endpoint after the other until one gives a final answer.
    async fn try_each<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: &impl RpcSend,
        order: Vec<usize>,
        check: &impl Fn(usize, Result<R, RpcError>) -> Result<R, RpcError>,
    ) -> Result<R, RpcError> {
        let mut last = RpcError::Unreachable;
        let mut order = order.into_iter();
        let request = async |index| {
            let answer = self.request(index, method, parameters.clone()).await;
            check(index, answer)
        };
        while let Some(first) = order.next() {
            let pending = request(first);
            tokio::pin!(pending);
            let delay = self.hedge_delay(first);
            let answer = match tokio::time::timeout(delay, &mut pending).await {
                Ok(answer) => answer,
                Err(_) => match order.next() {
                    None => pending.await,
                    Some(second) => self.hedge((first, pending), request(second)).await,
                },
            };
            match answer {
                // A transient error is kept in preference to a later one, because it makes the caller retry.
                Err(error) if !error.is_final() => {
                    if RetryPauses::default().after(&last).is_none()
                        || last == RpcError::Unreachable
                    {
                        last = error;
                    }
                }
                answer => return answer,
            }
        }
        Err(last)
    }

    /// The first final answer of a late endpoint and a second one.
    async fn hedge<R>(
        &self,
        (late, mut pending): (usize, impl Future<Output = Result<R, RpcError>> + Unpin),
        other: impl Future<Output = Result<R, RpcError>>,
    ) -> Result<R, RpcError> {
        tokio::pin!(other);
        let counts = |answer: &Result<R, RpcError>| match answer {
            Ok(_) => true,
            Err(error) => error.is_final(),
        };
        tokio::select! {
            answer = &mut pending => if counts(&answer) { answer } else { other.await },
            answer = &mut other => {
                if counts(&answer) {
                    if let Some(late) = self.endpoints.get(late) {
                        late.record_late();
                    }
                    answer
                } else {
                    pending.await
                }
            }
        }
    }

    /// Endpoints for calls with state overrides: those not known to lack them, or all, if all are known to lack them.
    fn ranked_with_overrides(&self) -> Vec<usize> {
        let order = self.ranked();
        let supporting = |index: &usize| {
            let endpoint = self.endpoints.get(*index);
            endpoint.is_some_and(|endpoint| endpoint.health().has_overrides())
        };
        let supporting: Vec<usize> = order.iter().copied().filter(supporting).collect();
        if supporting.is_empty() {
            order
        } else {
            supporting
        }
    }

    fn record_overrides(&self, index: usize, has: bool) {
        let Some(endpoint) = self.endpoints.get(index) else {
            return;
        };
        let (network, number) = (self.network, index + 1);
        if endpoint.set_overrides(has) == has {
            return;
        }
        if has {
            tracing::info!(%network, endpoint = number, "endpoint supports state overrides now; used to simulate payments");
        } else {
            tracing::warn!(%network, endpoint = number, "endpoint without state overrides: not used to simulate payments; use a node that takes the third parameter of eth_call");
        }
    }

    /// Tests every endpoint for state overrides. The record of an endpoint that does not answer stays unchanged.
    ///
    /// # Errors
    /// [`RpcError::NoOverrides`] when every endpoint lacks them; another error when none has them and one gave no answer.
    pub async fn check_overrides(&self) -> Result<(), RpcError> {
        let mut last = RpcError::NoOverrides;
        let mut supporting = false;
        for index in 0..self.endpoints.len() {
            match self.probe_overrides(index).await {
                Ok(()) => supporting = true,
                Err(RpcError::NoOverrides) => {}
                Err(error) => last = error,
            }
        }
        if supporting { Ok(()) } else { Err(last) }
    }

    pub(super) async fn probe_overrides(&self, index: usize) -> Result<(), RpcError> {
        let endpoint = self.endpoints.get(index).ok_or(RpcError::Unreachable)?;
        let call_to_lens = json!({"to": LENS, "data": lens::code_sizes_call(vec![LENS])});
        let parameters = (call_to_lens, "latest", lens::overrides());
        let answer = call::<Bytes>(&endpoint.client, READ_LIMIT, "eth_call", parameters).await;
        let has = match answer {
            Ok(answer) => lens::decode_code_sizes(&answer).is_some_and(|sizes| !sizes.is_empty()),
            Err(error) if error.kind() == ErrorKind::Unsupported || error.is_revert() => false,
            Err(error) => return Err(error),
        };
        self.record_overrides(index, has);
        if has {
            Ok(())
        } else {
            Err(RpcError::NoOverrides)
        }
    }
}
