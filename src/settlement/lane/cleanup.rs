//! Releases what a lane holds when its task panics.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Lane;
use crate::chain::SignerKey;
use crate::settlement::ServedNetwork;

impl Lane {
    /// Claims and works the lane of `key` until `stop`. After a panic the lane no longer counts as owned by this process, its payments are
    /// unclaimed, and the panic is resumed.
    pub async fn run_with_cleanup(
        served: Arc<ServedNetwork>,
        key: SignerKey,
        stop: CancellationToken,
    ) {
        let mut task = JoinSet::new();
        let lane = Self::new(Arc::clone(&served), key);
        let signer = lane.id.signer;
        task.spawn(lane.run(stop).in_current_span());
        let Some(Err(error)) = task.join_next().await else {
            return;
        };
        let left = served.queue.remove_lane(signer).await;
        served.unclaim(&left).await;
        if let Ok(panic) = error.try_into_panic() {
            std::panic::resume_unwind(panic);
        }
    }
}
