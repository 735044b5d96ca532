//! What becomes of a lane's things when its task dies.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Lane;
use crate::chain::SignerKey;
use crate::settlement::Site;

impl Lane {
    /// Claims and works the lane of `key` until `stop`. Should it panic, this process does not count as its owner any more, and what it had in
    /// hand is left to anybody; then the panic goes on.
    pub async fn mortal(site: Arc<Site>, key: SignerKey, stop: CancellationToken) {
        let mut task = JoinSet::new();
        let lane = Self::new(Arc::clone(&site), key);
        let signer = lane.id.signer;
        task.spawn(lane.run(stop));
        let Some(Err(error)) = task.join_next().await else {
            return;
        };
        let left = site.queue.lane_ends(signer).await;
        site.leave_to_anybody(&left).await;
        if let Ok(panic) = error.try_into_panic() {
            std::panic::resume_unwind(panic);
        }
    }
}
